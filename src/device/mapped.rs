//! A file as bytes in memory, read on demand by the kernel.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A whole file, mapped read-only.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// The file cannot be opened, is a folder, or cannot be mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the mapping is private to this value, which keeps it alive for as long as slices of it are
        // borrowed, and it is never written through. Its length is that of the file when it was mapped. Any byte is
        // a valid u8, so other writers to the file can change what is read but not its validity; every reader
        // checks what it decodes each time. Only cutting the file while it is read ends the process (SIGBUS), which
        // the launcher reports like any other death of a rank.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self(map))
    }
}

impl Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_reads_as_its_bytes_and_a_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes");
        std::fs::write(&path, [1_u8, 2, 255]).unwrap();
        assert_eq!(&*Mapped::open(&path).unwrap(), &[1, 2, 255]);
        assert!(Mapped::open(folder.path()).is_err());
        assert!(Mapped::open(&folder.path().join("absent")).is_err());
    }
}
