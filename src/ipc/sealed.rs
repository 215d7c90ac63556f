//! Bodies too large for a packet: a memfd that nobody can change any more.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};

use super::frame::MESSAGE_BYTES_MAX;

/// The seals without which the sender could still change what the receiver has checked.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

/// Says why a body could not be sealed or read.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// The kernel refused.
    #[error("failed to {what} a memfd")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The sender could still change the body, or it is no memfd at all.
    #[error("the descriptor is not a sealed memfd")]
    NotSealed,
    /// The body is larger than any may be.
    #[error("the memfd holds {0} bytes, more than {MESSAGE_BYTES_MAX}")]
    TooLarge(u64),
}

impl SealedError {
    fn kernel(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Kernel { what, source }
    }
}

/// Puts `bytes` into a sealed memfd.
///
/// # Errors
/// When the kernel has no memory or no descriptor left.
pub fn seal(bytes: &[u8]) -> Result<OwnedFd, SealedError> {
    let fd = memfd_create("smgr", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|errno| SealedError::kernel("make")(errno.into()))?;
    let mut file = File::from(fd);
    file.write_all(bytes).map_err(SealedError::kernel("write"))?;
    fcntl_add_seals(&file, SEALS).map_err(|errno| SealedError::kernel("seal")(errno.into()))?;
    Ok(file.into())
}

/// Reads a sealed memfd whole, wherever its offset stands.
///
/// # Errors
/// When a seal is missing or the body is larger than [`MESSAGE_BYTES_MAX`].
pub fn read(fd: &impl AsFd) -> Result<Vec<u8>, SealedError> {
    let seals = fcntl_get_seals(fd).map_err(|_| SealedError::NotSealed)?;
    if !seals.contains(SEALS) {
        return Err(SealedError::NotSealed);
    }
    let size = fstat(fd).map_err(|errno| SealedError::kernel("measure")(errno.into()))?.st_size;
    let size = u64::try_from(size).expect("a file has no negative size");
    if size > MESSAGE_BYTES_MAX as u64 {
        return Err(SealedError::TooLarge(size));
    }
    let copy = fd.as_fd().try_clone_to_owned().map_err(SealedError::kernel("duplicate"))?;
    let mut file = File::from(copy);
    std::io::Seek::rewind(&mut file).map_err(SealedError::kernel("rewind"))?;
    let mut bytes = Vec::with_capacity(size as usize);
    file.read_to_end(&mut bytes).map_err(SealedError::kernel("read"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memfd_that_the_sender_can_still_change_is_refused() {
        let fd = memfd_create("t", MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(matches!(read(&fd), Err(SealedError::NotSealed)));
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(read(&file), Err(SealedError::NotSealed)));
    }

    #[test]
    fn a_sealed_body_reads_whole_and_takes_no_further_write() {
        let fd = seal(b"body").unwrap();
        assert_eq!(read(&fd).unwrap(), b"body");
        assert!(File::from(fd).write_all(b"x").is_err());
    }
}
