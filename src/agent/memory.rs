//! Memory that only a start or an apply needed, given back when it is over.

use std::fs;
use std::time::Duration;

use super::clock;
use super::task::{Agent, Deadline};

/// How long after spec files were read the services that they describe have started, mostly.
const SETTLED_AFTER: Duration = Duration::from_secs(4);

impl Agent {
    /// Spec files are read: what that took is given back when their services have been started.
    pub(super) fn will_settle(&mut self) {
        let due = clock::now().mono_ns + SETTLED_AFTER.as_nanos() as u64;
        self.timers.set(Deadline::Settled, due);
    }
}

/// Gives back free pages of the heap, and the mapping of the program's own code.
///
/// What runs from then on is mapped again where it lies in the page cache, at a minor fault for 16 pages; the parser, replay and
/// whatever else ran once stays out, and the kernel may take its pages without asking anybody.
///
/// Returns how many bytes of code are no longer mapped.
pub(super) fn give_back() -> usize {
    trim_heap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = fs::read_link("/proc/self/exe").unwrap_or_default();
    let program = program.to_string_lossy();
    let code = maps.lines().filter_map(|line| code_of(line, &program));
    code.filter(|(from, to)| unmap_code(*from, *to)).map(|(from, to)| to - from).sum()
}

/// The addresses of a line of `proc_pid_maps(5)` when it is the program's code: executable, private and never written.
fn code_of(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp" && line.ends_with(program) && !program.is_empty();
    let address = |hex| usize::from_str_radix(hex, 16).ok();
    is_code.then_some((address(from)?, address(to)?))
}

#[expect(unsafe_code, reason = "the kernel is told about a range of addresses")]
fn unmap_code(from: usize, to: usize) -> bool {
    let start = from as *mut libc::c_void;
    // SAFETY: the range is a private mapping of a file that was never writable, so each of its pages reads the same after the
    // next fault: nothing that lives in it, this function included, can see a difference.
    unsafe { libc::madvise(start, to - from, libc::MADV_DONTNEED) == 0 }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the allocator is told by a function of C")]
fn trim_heap() {
    // SAFETY: the function takes no pointer and may be called at any time from any thread.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim_heap() {}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
        55d0c0000000-55d0c0400000 r--p 00000000 fe:00 17 /opt/smgr\n\
        55d0c0400000-55d0c1000000 r-xp 00400000 fe:00 17 /opt/smgr\n\
        55d0c1000000-55d0c1100000 rw-p 01000000 fe:00 17 /opt/smgr\n\
        7f0000000000-7f0000200000 r-xp 00000000 fe:00 18 /lib/libc.so.6\n\
        7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]\n";

    #[test]
    fn only_the_programs_own_code_is_unmapped() {
        let of = |program: &str| {
            MAPS.lines().filter_map(|line| code_of(line.trim(), program)).collect::<Vec<_>>()
        };
        assert_eq!(of("/opt/smgr"), [(0x55d0_c040_0000, 0x55d0_c100_0000)]);
        assert_eq!(of(""), []);
    }

    #[test]
    fn the_program_goes_on_when_its_code_was_unmapped() {
        let again = || give_back() / 4096;
        assert!(again() > 0 && again() > 0, "none of this program's code was found");
    }
}
