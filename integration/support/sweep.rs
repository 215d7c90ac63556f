//! What a machine still holds of a node that was killed: its cgroups and its folders in memory.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use smgr::ipc::hello::Part;
use smgr::ipc::place::Place;

use super::wait::PATIENCE;

/// Ends what is left of a node's services and removes the places of their runs, all of them by the name of the state
/// folder's domain.
pub(crate) fn sweep(state: &Path) {
    let place = Place::of(state);
    let keeper = place.folder_of(Part::Keeper);
    let Ok(domain) = fs::read_to_string(keeper.join("domain")) else { return };
    let root = fs::read_to_string(keeper.join("cgroup")).unwrap_or_default();
    let root = Path::new(root.trim());
    if root.ends_with(format!("smgr-{domain}")) && root.is_dir() {
        drop(fs::write(root.join("cgroup.kill"), "1"));
        let is_empty = |events: String| events.contains("populated 0");
        let until = Instant::now() + PATIENCE;
        // No panic here: the test may be panicking already.
        while !fs::read_to_string(root.join("cgroup.events")).map_or(true, is_empty)
            && Instant::now() < until
        {
            thread::sleep(Duration::from_millis(10));
        }
        remove_cgroups(root);
    }
    drop(fs::remove_dir_all(Path::new("/run/smgr").join(&domain)));
    if let Ok(runtime) = fs::read_link(place.runtime())
        && runtime.to_string_lossy().ends_with(&domain)
    {
        drop(fs::remove_dir_all(runtime));
    }
}

fn remove_cgroups(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    drop(fs::remove_dir(folder));
}
