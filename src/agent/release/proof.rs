//! What a process of a release runs, held against the files of the release.
//!
//! A process may rightly run something else than what was started: a shell, an interpreter, whatever a wrapper hands over
//! to. So only a program from the folders of releases is judged. There it has to be one of this release, and the bytes
//! that lie in its place: a path that still leads to an earlier release, and files that were exchanged under a
//! process, are found. Where a release brings no files, nothing says which program is wanted, and what runs is only told.

use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::tree;
use crate::domain::id::Digest;

/// What the kernel says behind the name of a program that is not there any more.
const DELETED: &[u8] = b" (deleted)";

/// The files that a release is to run from.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The folder of all releases of its service.
    pub(super) folder: PathBuf,
    /// The name of its own in that.
    pub(super) artifact: String,
}

/// Returns the digest of the program that a process runs; none where that cannot be read, as of another account.
///
/// # Errors
/// It is not the program that the release has: says for people what it is.
pub(super) fn running(pid: u32, wanted: Option<&Wanted>) -> Result<Option<Digest>, String> {
    let exe = PathBuf::from(format!("/proc/{pid}/exe"));
    let read = |path: &Path| tree::digest_of(&mut File::open(path)?);
    let (Ok(link), Ok(running)) = (fs::read_link(&exe), read(&exe)) else { return Ok(None) };
    let is_so = Ok(Some(running));
    let Some(Wanted { folder, artifact }) = wanted else { return is_so };
    let Ok(folder) = fs::canonicalize(folder) else { return is_so };
    let link = link.into_os_string().into_vec();
    let path =
        PathBuf::from(std::ffi::OsStr::from_bytes(link.strip_suffix(DELETED).unwrap_or(&link)));
    let Ok(place) = path.strip_prefix(&folder) else { return is_so };
    let mut parts = place.components();
    let of = parts.next().map(|part| part.as_os_str().to_owned()).unwrap_or_default();
    let program = parts.as_path().display();
    if of.as_bytes() != artifact.as_bytes() {
        let of = of.display();
        return Err(format!(
            "it runs {program} of {of}, and the files of the release are {artifact}"
        ));
    }
    match read(&path) {
        Ok(digest) if digest == running => is_so,
        Ok(digest) => Err(format!("it runs {running} as {program}, and the release has {digest}")),
        Err(why) => Err(format!("it runs {program}, which the release has no more: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::{Child, Command};

    use super::*;

    /// A process that runs until the test ends.
    struct Running(Child);

    impl Running {
        fn of(program: &Path) -> Self {
            Self(Command::new(program).arg("60").spawn().unwrap())
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    /// A folder of releases, of which `old` and `new` have a program; by a link, as `run/` may be one.
    fn releases() -> (tempfile::TempDir, PathBuf) {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("web");
        for release in ["old", "new"] {
            let bin = folder.join(release).join("bin");
            fs::create_dir_all(&bin).unwrap();
            fs::copy("/bin/sleep", bin.join("server")).unwrap();
        }
        symlink(&folder, above.path().join("linked")).unwrap();
        let linked = above.path().join("linked");
        (above, linked)
    }

    fn wanted(folder: &Path) -> Wanted {
        Wanted { folder: folder.to_owned(), artifact: "new".to_owned() }
    }

    #[test]
    fn complaint_12_a_program_of_the_release_is_what_is_wanted_and_one_of_an_earlier_release_is_not()
     {
        let (_above, folder) = releases();
        let of = |release: &str| {
            let running_of = Running::of(&folder.join(release).join("bin/server"));
            running(running_of.0.id(), Some(&wanted(&folder)))
        };
        let sleep = tree::digest_of(&mut File::open("/bin/sleep").unwrap()).unwrap();
        assert_eq!(of("new"), Ok(Some(sleep)));
        // The same bytes: but it is the old release that runs.
        assert!(of("old").unwrap_err().contains("it runs bin/server of old"));
    }

    #[test]
    fn files_that_were_exchanged_under_a_process_are_not_what_it_runs() {
        let (_above, folder) = releases();
        let server = folder.join("new/bin/server");
        let process = Running::of(&server);
        let look = || running(process.0.id(), Some(&wanted(&folder)));
        fs::remove_file(&server).unwrap();
        assert!(look().unwrap_err().contains("which the release has no more"));
        fs::write(&server, b"another").unwrap();
        assert!(look().unwrap_err().contains("as bin/server, and the release has"));
        fs::copy("/bin/sleep", &server).unwrap();
        assert!(look().is_ok(), "the same bytes are the same program");
    }

    #[test]
    fn whatever_a_wrapper_or_an_interpreter_runs_is_told_and_not_judged() {
        let (_above, folder) = releases();
        let process = Running::of(Path::new("/bin/sleep"));
        let sleep = tree::digest_of(&mut File::open("/bin/sleep").unwrap()).unwrap();
        assert_eq!(running(process.0.id(), Some(&wanted(&folder))), Ok(Some(sleep)));
        let process = Running::of(&folder.join("old/bin/server"));
        assert_eq!(running(process.0.id(), None), Ok(Some(sleep)), "it brings no files");
        let gone = u32::MAX;
        assert_eq!(running(gone, Some(&wanted(&folder))), Ok(None), "nobody can say");
    }
}
