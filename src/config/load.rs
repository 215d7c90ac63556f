//! Finds the files of all layers, reads them, and hands them over to be assembled.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::assemble::{Input, Loaded, Options, Part, assemble};
use super::mistake::Mistake;
use super::owner;
use crate::domain::code::Code;
use crate::domain::origin::Layer;
use crate::domain::text::printable;

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How many files a folder may have.
const FILES_MAX: usize = 5000;

/// Where files are looked for. A folder that is not there is empty.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    /// `/usr/lib/smgr/services.d`: what came with packages.
    pub package: Option<PathBuf>,
    /// What smgr made itself, such as its nats-server; in the same layer.
    pub vendor: Option<PathBuf>,
    /// `/etc/smgr/services.d`.
    pub host: Option<PathBuf>,
    /// `/etc/smgr/groups.d`.
    pub group: Option<PathBuf>,
    /// `/etc/smgr/override.d`.
    pub node: Option<PathBuf>,
    /// A project's `smgr.toml`, which has to be there. Beside it there may be `groups.d` and `override.d` of its own, which
    /// lie below those of the machine.
    pub project: Option<PathBuf>,
}

impl Roots {
    /// Returns the folders of a machine that root runs.
    pub fn system() -> Self {
        Self {
            package: Some("/usr/lib/smgr/services.d".into()),
            ..Self::below(Path::new("/etc/smgr"))
        }
    }

    /// Returns the folders below one folder, such as `~/.config/smgr`.
    pub fn below(folder: &Path) -> Self {
        Self {
            package: None,
            vendor: None,
            host: Some(folder.join("services.d")),
            group: Some(folder.join("groups.d")),
            node: Some(folder.join("override.d")),
            project: None,
        }
    }

    /// Returns a folder beside the project's file.
    pub fn of_project(&self, name: &str) -> Option<PathBuf> {
        Some(self.project.as_ref()?.parent()?.join(name))
    }
}

/// Loads all services, or says all that is wrong in all files.
///
/// With `writer`, files and folders have to be writable by root and by this user id only.
pub fn load(roots: &Roots, options: &Options, writer: Option<u32>) -> Result<Loaded, Vec<Mistake>> {
    load_with(roots, options, writer, None)
}

/// Loads all services as if `edited` stood in its place already.
///
/// # Errors
/// All that is wrong in all files.
pub fn load_with(
    roots: &Roots,
    options: &Options,
    writer: Option<u32>,
    edited: Option<Input>,
) -> Result<Loaded, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut inputs = options.releases.clone();
    let instead = edited.as_ref().map(|edited| PathBuf::from(&edited.shown));
    let folders = [
        (roots.package.clone(), Part::Body(Layer::Vendor)),
        (roots.vendor.clone(), Part::Body(Layer::Vendor)),
        (roots.host.clone(), Part::Body(Layer::Host)),
        (roots.of_project("groups.d"), Part::Group),
        (roots.group.clone(), Part::Group),
        (roots.of_project("override.d"), Part::Override),
        (roots.node.clone(), Part::Override),
    ];
    for (folder, part) in folders {
        let Some(folder) = folder else { continue };
        let is_edited = |path: &PathBuf| instead.as_ref() == Some(path);
        let here = instead.as_deref().and_then(Path::parent) == Some(&*folder);
        match list(&folder) {
            Ok(mut files) => {
                files.retain(|path| !is_edited(path));
                inputs.extend(edited.clone().filter(|_| here));
                inputs.extend(files.into_iter().filter_map(|path| {
                    read_input(&path, part, writer).map_err(|mistake| mistakes.push(mistake)).ok()
                }));
            }
            Err(mistake) => mistakes.push(mistake),
        }
    }
    if let Some(path) = &roots.project {
        match read_input(path, Part::Project, writer) {
            Ok(input) => inputs.push(input),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    match (assemble(inputs, options), mistakes.is_empty()) {
        (Ok(loaded), true) => Ok(loaded),
        (Ok(_), false) => Err(mistakes),
        (Err(more), _) => {
            mistakes.extend(more);
            Err(mistakes)
        }
    }
}

/// Returns the `.toml` files of a folder, sorted; hidden ones and editors' leavings are none.
fn list(folder: &Path) -> Result<Vec<PathBuf>, Mistake> {
    let failed = |error: io::Error| unreadable(folder, &error);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(folder).is_err() =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension() == Some(OsStr::new("toml")) {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            let label = format!("more than {FILES_MAX} files");
            return Err(Mistake::new(Code::TOO_MANY, folder.display().to_string(), None, label));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one file as a part of the whole, such as for `smgr check FILE`.
///
/// With `writer`, it has to be writable by root and by this user id only.
pub fn read_input(path: &Path, part: Part, writer: Option<u32>) -> Result<Input, Mistake> {
    if let Some(uid) = writer {
        owner::check(path, uid)?;
    }
    let text = read_text(path)?;
    let shown = path.display().to_string();
    let stem = path.file_stem().and_then(OsStr::to_str).unwrap_or_default().to_owned();
    let folder = match part {
        Part::Project => {
            let file = path.canonicalize().map_err(|error| unreadable(path, &error))?;
            let folder = file.parent().and_then(Path::to_str).map(str::to_owned);
            Some(folder.ok_or_else(|| {
                Mistake::new(Code::BAD_PATH, &*shown, None, "the folder's name is not UTF-8")
            })?)
        }
        Part::Body(_) | Part::Group | Part::Override | Part::Release(..) | Part::Set(_) => None,
    };
    Ok(Input { part, shown, stem, folder, text })
}

/// Reads a whole text file of bounded size.
pub(super) fn read_text(path: &Path) -> Result<String, Mistake> {
    let failed = |error: io::Error| unreadable(path, &error);
    let refuse = |code, label: &str| Mistake::new(code, path.display().to_string(), None, label);
    let bytes = read_regular(path, FILE_BYTES_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => refuse(Code::FILE_TOO_LARGE, "larger than 1 MiB"),
        _ => failed(error),
    })?;
    String::from_utf8(bytes).map_err(|_| refuse(Code::NOT_TEXT, "not UTF-8 text"))
}

/// Reads a whole regular file. Anything else, such as a FIFO, would keep the reader waiting for ever.
///
/// # Errors
/// `FileTooLarge` beyond `bytes_max`, `InvalidInput` for what is no regular file, or those of the kernel.
pub fn read_regular(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let is_regular = |meta: fs::Metadata| match meta.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    };
    // To open a device may mean something to it.
    is_regular(fs::metadata(path)?)?;
    // Another may have taken its place since.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
    is_regular(file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > bytes_max {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> Mistake {
    let kind = error.kind();
    let label = if let (io::ErrorKind::NotFound, Ok(target)) = (kind, fs::read_link(path)) {
        format!("a link to {}, which is not there", printable(&target.to_string_lossy()))
    } else if kind == io::ErrorKind::NotFound {
        "no such file".to_owned()
    } else if kind == io::ErrorKind::PermissionDenied {
        "this user may not read it".to_owned()
    } else {
        error.to_string()
    };
    Mistake::new(Code::FILE_UNREADABLE, path.display().to_string(), None, label)
}
