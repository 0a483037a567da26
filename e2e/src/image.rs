//! Writes container images as `docker save` archives: plain layers, the same bytes for the same input.
//! It must not know a registry, a daemon or a cluster.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tar::{Builder, EntryType, Header};

/// Where the host keeps its certificate authorities, and where every image gets them.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const PASSWD: &str = "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";

/// One image for the machine that writes it: files from scratch, and how to start them.
#[derive(Debug)]
pub struct Image {
    pub name: String,
    /// `UID:GID`.
    pub user: String,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub working_directory: String,
    /// `KEY=VALUE` each.
    pub environment: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// A layer each, later ones over earlier ones.
    pub added: Vec<Added>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            name: String::new(),
            user: "65532:65532".into(),
            entrypoint: Vec::new(),
            command: Vec::new(),
            working_directory: "/".into(),
            environment: vec![
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
                format!("SSL_CERT_FILE={CA_BUNDLE}"),
            ],
            labels: BTreeMap::new(),
            added: Vec::new(),
        }
    }
}

/// A file, or a folder with all that is in it, and its path in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    pub source: PathBuf,
    pub destination: PathBuf,
    /// Of files; otherwise 0755 for what is executable and 0644 for the rest.
    pub mode: Option<u32>,
}

impl FromStr for Added {
    type Err = anyhow::Error;

    /// Reads `SRC:DEST[:MODE]`.
    fn from_str(text: &str) -> Result<Self> {
        let mut fields = text.split(':');
        let (Some(source), Some(destination), mode, None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            bail!("'{text}' is not SRC:DEST[:MODE]");
        };
        if source.is_empty() || !destination.starts_with('/') {
            bail!("'{text}': SRC must be given and DEST start with '/'");
        }
        let mode = mode
            .map(|mode| u32::from_str_radix(mode, 8).with_context(|| format!("'{text}': MODE is not octal")))
            .transpose()?;
        Ok(Self { source: source.into(), destination: destination.into(), mode })
    }
}

impl Image {
    /// Writes the archive whole under a temporary name and then renames it, so that no half image is ever loaded.
    pub fn write(&self, out: &Path) -> Result<()> {
        let unfinished = out.with_extension("tar.unfinished");
        let file = File::create(&unfinished).with_context(|| format!("create {}", unfinished.display()))?;
        self.write_archive(BufWriter::new(file))?;
        fs::rename(&unfinished, out).with_context(|| format!("rename to {}", out.display()))
    }

    fn write_archive(&self, out: impl Write + Seek) -> Result<()> {
        let mut archive = Builder::new(out);
        let mut folders = BTreeSet::new();
        let mut layers = vec![append_layer(&mut archive, 0, |layer| write_basics(layer, &mut folders))?];
        for (index, added) in self.added.iter().enumerate() {
            layers.push(append_layer(&mut archive, index + 1, |layer| write_added(layer, &mut folders, added))?);
        }
        let config = serde_json::to_vec(&self.config(&layers))?;
        let config_name = format!("{:x}.json", Sha256::digest(&config));
        let manifest = json!([{
            "Config": config_name,
            "RepoTags": [self.name],
            "Layers": layers.iter().map(|layer| &layer.name).collect::<Vec<_>>(),
        }]);
        append_file(&mut archive, Path::new(&config_name), 0o644, &config)?;
        append_file(&mut archive, Path::new("manifest.json"), 0o644, &serde_json::to_vec(&manifest)?)?;
        archive.into_inner()?.flush()?;
        Ok(())
    }

    fn config(&self, layers: &[Layer]) -> Value {
        json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "User": self.user,
                "Env": self.environment,
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "WorkingDir": self.working_directory,
                "Labels": self.labels,
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect::<Vec<_>>(),
            },
            "history": layers.iter().map(|_| json!({"created_by": "image-tar"})).collect::<Vec<_>>(),
        })
    }
}

/// In Go's words, as images have it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

struct Layer {
    name: String,
    digest: String,
}

/// Passes bytes on and digests them.
struct Digesting<W> {
    inner: W,
    digest: Sha256,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Streams one layer into the archive: a layer may be larger than memory should hold.
fn append_layer<W: Write + Seek>(
    archive: &mut Builder<W>,
    index: usize,
    fill: impl FnOnce(&mut Builder<&mut dyn Write>) -> Result<()>,
) -> Result<Layer> {
    let name = format!("layer-{index}.tar");
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_mtime(0);
    let mut sink = Digesting { inner: archive.append_writer(&mut header, &name)?, digest: Sha256::new() };
    let mut layer = Builder::new(&mut sink as &mut dyn Write);
    fill(&mut layer)?;
    layer.into_inner()?;
    let digest = format!("{:x}", sink.digest.finalize());
    sink.inner.finish()?;
    Ok(Layer { name, digest })
}

type LayerBuilder<'a> = Builder<&'a mut dyn Write>;
/// Folders that the image has already: a later layer must not reset their mode.
type Folders = BTreeSet<PathBuf>;

/// What programs expect of any root: a sticky /tmp, names for the users, the certificate authorities of this machine.
fn write_basics(layer: &mut LayerBuilder, folders: &mut Folders) -> Result<()> {
    write_parents(layer, folders, Path::new("etc/passwd"))?;
    append_file(layer, Path::new("etc/group"), 0o644, GROUP.as_bytes())?;
    append_file(layer, Path::new("etc/passwd"), 0o644, PASSWD.as_bytes())?;
    if Path::new(CA_BUNDLE).exists() {
        let authorities = Added { source: CA_BUNDLE.into(), destination: CA_BUNDLE.into(), mode: Some(0o644) };
        write_added(layer, folders, &authorities)?;
    }
    write_folder(layer, folders, Path::new("tmp"), 0o1777)
}

fn write_added(layer: &mut LayerBuilder, folders: &mut Folders, added: &Added) -> Result<()> {
    let destination = added.destination.strip_prefix("/").unwrap_or(&added.destination);
    write_parents(layer, folders, destination)?;
    // What is named on the command line is followed; links inside a folder stay links.
    let source = fs::canonicalize(&added.source).with_context(|| format!("{} is not there", added.source.display()))?;
    write_tree(layer, folders, &source, destination, added.mode)
}

fn write_tree(
    layer: &mut LayerBuilder,
    folders: &mut Folders,
    source: &Path,
    path: &Path,
    mode: Option<u32>,
) -> Result<()> {
    let metadata = fs::symlink_metadata(source).with_context(|| format!("{} is not there", source.display()))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        write_folder(layer, folders, path, 0o755)?;
        let mut children = fs::read_dir(source)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
        children.sort();
        return children
            .iter()
            .try_for_each(|child| write_tree(layer, folders, &source.join(child), &path.join(child), mode));
    }
    if kind.is_symlink() {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        return Ok(layer.append_link(&mut header, path, fs::read_link(source)?)?);
    }
    if !kind.is_file() {
        bail!("{} is neither a file, a folder nor a link", source.display());
    }
    let executable = metadata.permissions().mode() & 0o111 != 0;
    let mode = mode.unwrap_or(if executable { 0o755 } else { 0o644 });
    let content = File::open(source).with_context(|| format!("{} cannot be read", source.display()))?;
    Ok(layer.append_data(&mut header(EntryType::Regular, mode, metadata.len()), path, content)?)
}

fn write_parents(layer: &mut LayerBuilder, folders: &mut Folders, path: &Path) -> Result<()> {
    let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
    parents.reverse();
    parents.into_iter().try_for_each(|parent| write_folder(layer, folders, parent, 0o755))
}

fn write_folder(layer: &mut LayerBuilder, folders: &mut Folders, path: &Path, mode: u32) -> Result<()> {
    if path.as_os_str().is_empty() || !folders.insert(path.to_owned()) {
        return Ok(());
    }
    Ok(layer.append_data(&mut header(EntryType::Directory, mode, 0), path, io::empty())?)
}

fn append_file<W: Write>(archive: &mut Builder<W>, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let size = u64::try_from(content.len())?;
    Ok(archive.append_data(&mut header(EntryType::Regular, mode, size), path, content)?)
}

/// Owned by root and without a time.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
