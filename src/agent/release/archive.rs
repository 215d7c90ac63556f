//! Unpacks the archive of a release: strictly, into a folder that nobody else writes.
//!
//! An archive comes from a pipeline and is not ours: what a release does not need is refused, never skipped. Nothing is
//! written through a link, since every parent of an entry has to be a folder of this very archive.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

/// What one archive may come to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// All files together, in bytes.
    pub bytes_max: u64,
    /// Files, folders and links, those that nobody names but only something below them among them.
    pub entries_max: usize,
}

/// A release of 4 GiB fits most disks; more is probably a mistake, or meant to fill them.
pub const LIMITS: Limits = Limits { bytes_max: 4 << 30, entries_max: 50_000 };

/// The longest path, the longest name in one, and the longest record of names, in bytes.
const PATH_BYTES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 255;
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// Deeper trees are made to trip up whoever walks them.
const DEPTH_MAX: usize = 64;

const BLOCK: usize = 512;

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It does not read.
    #[error("the archive is damaged or cut: {0}")]
    Damaged(io::Error),
    /// It reads, and is no archive.
    #[error("this is no tar archive: {0}")]
    NotTar(&'static str),
    /// An entry is of a kind, or has a name, that a release may not have.
    #[error("`{path}` {why}")]
    Entry {
        /// Its name, as far as it can be shown.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It comes to more than is taken.
    #[error("it holds more than {0}")]
    TooMuch(String),
    /// The disk refuses.
    #[error("`{path}` cannot be written: {source}")]
    Write {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Folder,
    File,
    Link,
}

/// One header, with what the records before it say.
struct Header {
    name: Vec<u8>,
    link: Vec<u8>,
    mode: u64,
    size: u64,
    kind: u8,
}

#[derive(Default)]
struct Records {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

struct Unpacker<'a, R> {
    from: R,
    into: &'a Path,
    limits: Limits,
    made: BTreeMap<PathBuf, Made>,
    bytes: u64,
}

/// Unpacks a tar archive into an empty folder; returns how many bytes its files have.
///
/// # Errors
/// The first thing that is wrong. What was unpacked until then is the caller's to remove.
pub fn unpack(from: impl Read, into: &Path, limits: Limits) -> Result<u64, UnpackError> {
    let mut unpacker = Unpacker { from, into, limits, made: BTreeMap::new(), bytes: 0 };
    unpacker.run()?;
    Ok(unpacker.bytes)
}

impl<R: Read> Unpacker<'_, R> {
    fn run(&mut self) -> Result<(), UnpackError> {
        let mut records = Records::default();
        // An entry has records about it before it; without a bound a few packed bytes would be read for hours.
        let headers_max = 64 + 4 * self.limits.entries_max;
        for headers in 0..headers_max {
            let mut block = [0; BLOCK];
            self.from.read_exact(&mut block).map_err(UnpackError::Damaged)?;
            if block.iter().all(|byte| *byte == 0) {
                // What follows the end is padding; it is read so that a damaged end shows.
                let rest =
                    io::copy(&mut (&mut self.from).take(self.limits.bytes_max), &mut io::sink());
                rest.map_err(UnpackError::Damaged)?;
                return match headers {
                    0 => Err(UnpackError::NotTar("it is empty")),
                    _ => Ok(()),
                };
            }
            let header = header(&block, std::mem::take(&mut records))?;
            match header.kind {
                b'x' => records = self.pax(header.size)?,
                b'g' => drop(self.record(header.size)?),
                b'L' => records.name = Some(until_nul(&self.record(header.size)?).to_vec()),
                b'K' => records.link = Some(until_nul(&self.record(header.size)?).to_vec()),
                _ => self.entry(&header)?,
            }
        }
        Err(UnpackError::TooMuch(format!("{headers_max} headers")))
    }

    fn entry(&mut self, header: &Header) -> Result<(), UnpackError> {
        let refuse = |why| UnpackError::Entry { path: shown(&header.name), why };
        let path = relative(&header.name).map_err(refuse)?;
        if path.as_os_str().is_empty() {
            return match header.kind {
                b'5' => Ok(()),
                _ => Err(refuse("has no name")),
            };
        }
        if path.components().count() > DEPTH_MAX {
            return Err(refuse("lies too deep"));
        }
        self.parents(&path, refuse)?;
        let there = self.made.get(&path).copied();
        let place = self.into.join(&path);
        let failed = |source| UnpackError::Write { path: shown(&header.name), source };
        match (header.kind, there) {
            (b'5', Some(Made::Folder)) => return Ok(()),
            (_, Some(_)) => return Err(refuse("stands twice")),
            (b'0' | 0 | b'7', None) => {
                self.make(path, Made::File)?;
                self.file(header, &place)?;
            }
            (b'5', None) => {
                self.make(path, Made::Folder)?;
                fs::create_dir(&place).map_err(failed)?;
            }
            (b'2', None) => {
                let target = inside(&path, &header.link).map_err(refuse)?;
                self.make(path, Made::Link)?;
                symlink(target, &place).map_err(failed)?;
            }
            (b'1', None) => {
                let target = relative(&header.link).map_err(refuse)?;
                if self.made.get(&target) != Some(&Made::File) {
                    return Err(refuse("is a link to something that is no file before it"));
                }
                self.make(path, Made::File)?;
                fs::hard_link(self.into.join(target), &place).map_err(failed)?;
            }
            (b'3' | b'4', None) => return Err(refuse("is a device")),
            (b'6', None) => return Err(refuse("is a FIFO")),
            (_, None) => return Err(refuse("is of a kind that a release may not hold")),
        }
        Ok(())
    }

    /// Notes what is made, as long as there may be more of it.
    fn make(&mut self, path: PathBuf, made: Made) -> Result<(), UnpackError> {
        if self.made.len() >= self.limits.entries_max {
            return Err(UnpackError::TooMuch(format!("{} entries", self.limits.entries_max)));
        }
        self.made.insert(path, made);
        Ok(())
    }

    /// Makes the folders above an entry, each of which has to be one.
    fn parents(
        &mut self,
        path: &Path,
        refuse: impl Fn(&'static str) -> UnpackError,
    ) -> Result<(), UnpackError> {
        let above: Vec<&Path> = path.ancestors().skip(1).collect();
        for folder in above.into_iter().rev().filter(|folder| !folder.as_os_str().is_empty()) {
            match self.made.get(folder) {
                Some(Made::Folder) => {}
                Some(Made::File | Made::Link) => {
                    return Err(refuse("lies behind something that is no folder"));
                }
                None => {
                    let failed =
                        |source| UnpackError::Write { path: folder.display().to_string(), source };
                    self.make(folder.to_owned(), Made::Folder)?;
                    fs::create_dir(self.into.join(folder)).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, header: &Header, place: &Path) -> Result<(), UnpackError> {
        self.bytes = self.bytes.saturating_add(header.size);
        if self.bytes > self.limits.bytes_max {
            return Err(UnpackError::TooMuch(format!("{} bytes", self.limits.bytes_max)));
        }
        let failed = |source| UnpackError::Write { path: shown(&header.name), source };
        let mode = if header.mode & 0o111 != 0 { 0o755 } else { 0o644 };
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(mode).open(place).map_err(failed)?;
        let copied = io::copy(&mut (&mut self.from).take(header.size), &mut file);
        if copied.map_err(UnpackError::Damaged)? != header.size {
            return Err(UnpackError::Damaged(io::ErrorKind::UnexpectedEof.into()));
        }
        // The mask of this process is not that of the release.
        file.set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
        self.skip_padding(header.size)
    }

    /// Reads the content of a record about the next entry.
    fn record(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > RECORD_BYTES_MAX {
            return Err(UnpackError::TooMuch(format!("{RECORD_BYTES_MAX} bytes in one record")));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.from.read_exact(&mut bytes).map_err(UnpackError::Damaged)?;
        self.skip_padding(size)?;
        Ok(bytes)
    }

    fn skip_padding(&mut self, size: u64) -> Result<(), UnpackError> {
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let mut rest = [0; BLOCK];
        let rest = &mut rest[..usize::try_from(padding).unwrap_or_default()];
        self.from.read_exact(rest).map_err(UnpackError::Damaged)
    }

    /// Reads a PAX record: lines of `LENGTH NAME=VALUE`.
    fn pax(&mut self, size: u64) -> Result<Records, UnpackError> {
        let bytes = self.record(size)?;
        let mut records = Records::default();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let bad = || UnpackError::NotTar("a PAX record does not read");
            let blank = rest.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length = std::str::from_utf8(&rest[..blank]).ok().and_then(|it| it.parse().ok());
            let length: usize = length.ok_or_else(bad)?;
            if length <= blank + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(bad());
            }
            let line = &rest[blank + 1..length - 1];
            let equals = line.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (name, value) = (&line[..equals], &line[equals + 1..]);
            match name {
                b"path" => records.name = Some(value.to_vec()),
                b"linkpath" => records.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|it| it.parse().ok());
                    records.size = Some(size.ok_or_else(bad)?);
                }
                _ if name.starts_with(b"GNU.sparse") => {
                    return Err(UnpackError::NotTar("it holds sparse files"));
                }
                _ => {}
            }
            rest = &rest[length..];
        }
        Ok(records)
    }
}

fn header(block: &[u8; BLOCK], records: Records) -> Result<Header, UnpackError> {
    let sum: u64 = (block.iter().enumerate())
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
        .sum();
    if number(&block[148..156]) != Some(sum) {
        return Err(UnpackError::NotTar("the sum of a header is wrong"));
    }
    let prefix = match block[257..262] == *b"ustar" && block[262] == 0 {
        true => until_nul(&block[345..500]),
        false => &[],
    };
    let short = until_nul(&block[..100]);
    let joined = match prefix.is_empty() {
        true => short.to_vec(),
        false => [prefix, b"/", short].concat(),
    };
    let numbers = number(&block[100..108]).zip(number(&block[124..136]));
    let (mode, size) = numbers.ok_or(UnpackError::NotTar("a number in a header does not read"))?;
    let kind = block[156];
    let has_content = matches!(kind, b'0' | 0 | b'7' | b'x' | b'g' | b'L' | b'K');
    Ok(Header {
        name: records.name.unwrap_or(joined),
        link: records.link.unwrap_or_else(|| until_nul(&block[157..257]).to_vec()),
        mode,
        size: if has_content { records.size.unwrap_or(size) } else { 0 },
        kind,
    })
}

/// Reads octal digits, or the binary form that long files have.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (first, rest) = (u64::from(field[0] & 0x7f), &field[1..]);
        return rest
            .iter()
            .try_fold(first, |sum, byte| sum.checked_mul(256).map(|sum| sum + u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Returns a name as a path below the folder, without `.`.
fn relative(name: &[u8]) -> Result<PathBuf, &'static str> {
    let name = std::str::from_utf8(name).map_err(|_| "has a name that is not UTF-8")?;
    if name.len() > PATH_BYTES_MAX {
        return Err("has too long a name");
    }
    if name.contains('\0') {
        return Err("has a name with a zero byte");
    }
    let mut path = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) if part.len() > NAME_BYTES_MAX => {
                return Err("has too long a name");
            }
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err("has an absolute path"),
            Component::ParentDir => return Err("leads out with `..`"),
        }
    }
    Ok(path)
}

/// Returns the target of a link that stays inside.
///
/// `..` may stand at its start only: behind another link it would lead elsewhere than its words say.
fn inside(link: &Path, target: &[u8]) -> Result<PathBuf, &'static str> {
    let target = std::str::from_utf8(target).map_err(|_| "is a link that is not UTF-8")?;
    if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains('\0') {
        return Err("is a link to nothing");
    }
    let mut depth = link.components().count() - 1;
    let mut is_start = true;
    for part in Path::new(target).components() {
        match part {
            Component::Normal(_) => is_start = false,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => {
                return Err("is a link to an absolute path");
            }
            Component::ParentDir if is_start && depth > 0 => depth -= 1,
            Component::ParentDir => return Err("is a link that leads out"),
        }
    }
    Ok(PathBuf::from(target))
}

fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(200)]).into_owned();
    crate::domain::text::printable(&text).into_owned()
}

#[cfg(test)]
mod tests;
