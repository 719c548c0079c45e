//! Files of `mox.state-dir`: each is replaced as a whole and readable by its owner only.
//!
//! The directory may be one that others can write to. So a new file has a name that nobody foresees and is not there yet, no
//! link is followed, and what is no regular file is neither read nor waited for.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    hash::{BuildHasher, Hasher, RandomState},
    io::{BufWriter, IntoInnerError, Result},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;

/// The end of the names under which new files are written.
const PART: &str = ".part";

/// Replaces a file, whose directory is made where there is none. Takes as long as the disk does.
pub fn replace(file: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    if let Some(dir) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let part = file.with_file_name(format!("{}.{:016x}{PART}", name(file), RandomState::new().build_hasher().finish()));
    // A link of that name is an error as well.
    let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    let done = write_synced(out, write).and_then(|()| std::fs::rename(&part, file));
    if done.is_err() {
        let _ = std::fs::remove_file(part);
    }
    done
}

fn write_synced(out: File, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::new(out);
    write(&mut out)?;
    // Synced before the rename: after a crash the name must not point at bytes that are not there.
    out.into_inner().map_err(IntoInnerError::into_error)?.sync_data()
}

/// Opens a regular file, however it is called; a pipe is not waited for.
pub fn open(options: &mut OpenOptions, path: &Path) -> Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let file = options.custom_flags(flags as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    Ok(file)
}

/// Removes what writers of a file left behind, who ended before it was whole.
pub fn clean(file: &Path) {
    let files = file.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let is_part =
        |found: &str| found.strip_prefix(name(file)).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(PART));
    let parts = files.filter(|entry| entry.file_name().to_str().is_some_and(is_part));
    parts.for_each(|entry| drop(std::fs::remove_file(entry.path())));
}

fn name(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
