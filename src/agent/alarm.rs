//! The agent's alarm clock: one timer of the kernel for the next deadline.
//!
//! The runtime's own timers wake up on the way to a far deadline, to sort it anew. An idle agent has one deadline every
//! few seconds, and wakes for nothing else.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::ipc::channel;

/// A timer on the boot-time clock.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: AsyncFd<OwnedFd>,
    set_to: Option<u64>,
}

impl Alarm {
    /// Makes an alarm that is not set.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        Ok(Self { timer: channel::watch(timer)?, set_to: None })
    }

    /// Sets the alarm to a time in nanoseconds of the boot-time clock; `None` is never.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn set(&mut self, at_ns: Option<u64>) -> io::Result<()> {
        if self.set_to == at_ns {
            return Ok(());
        }
        // A time of zero would switch the timer off, and one that is over rings at once.
        let at_ns_or_off = at_ns.map_or(0, |at_ns| at_ns.max(1));
        let it_value = Timespec {
            tv_sec: i64::try_from(at_ns_or_off / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (at_ns_or_off % 1_000_000_000) as i64,
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Itimerspec { it_interval, it_value };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::ABSTIME, &value)?;
        self.set_to = at_ns;
        Ok(())
    }

    /// Waits until the time is over that was set last. Can be dropped while it waits.
    ///
    /// # Errors
    /// When the timer cannot be read.
    pub(super) async fn rings(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.timer.readable().await?;
            let mut count = [0; 8];
            match ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?)) {
                Ok(read) => {
                    // It is off from here on, until it is set anew.
                    self.set_to = None;
                    return read.map(drop);
                }
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::agent::clock;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn an_alarm_rings_at_the_last_time_that_was_set() {
        let mut alarm = Alarm::new().unwrap();
        assert!(timeout(SOON, alarm.rings()).await.is_err());
        let now_ns = clock::now().mono_ns;
        alarm.set(Some(now_ns + 3_600_000_000_000)).unwrap();
        assert!(timeout(SOON, alarm.rings()).await.is_err());
        alarm.set(Some(now_ns + 1_000_000)).unwrap();
        timeout(SOON * 100, alarm.rings()).await.unwrap().unwrap();
        assert!(clock::now().mono_ns >= now_ns + 1_000_000);
    }

    #[tokio::test]
    async fn an_alarm_for_what_is_over_rings_at_once_and_one_that_is_off_does_not() {
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Some(0)).unwrap();
        timeout(SOON * 100, alarm.rings()).await.unwrap().unwrap();
        alarm.set(Some(1)).unwrap();
        alarm.set(None).unwrap();
        assert!(timeout(SOON, alarm.rings()).await.is_err());
    }
}
