//! The command line of `belay_e2e::image`: `image-tar --name NAME --out FILE --add SRC:DEST[:MODE]...`.
//! It owns words and flags, and must not know the archive's format.

use anyhow::{Context, Result, bail};
use belay_e2e::image::{Added, Image};
use std::path::PathBuf;

const USAGE: &str = "\
Writes a container image as a `docker save` tar, without a daemon.

  image-tar --name NAME:TAG --out FILE [OPTION VALUE]...

  --name NAME:TAG          what the image is called once loaded
  --out FILE               the tar to write
  --base DIR               a folder laid at the image's root, before everything that is added
  --add SRC:DEST[:MODE]    a file, or a folder with all that is in it; one layer each; MODE is octal, for files
  --user UID[:GID]         who the process runs as (65532:65532)
  --entrypoint ARG         once for each word of the command
  --cmd ARG                once for each of the command's default arguments
  --workdir DIR            the folder it starts in (/)
  --env KEY=VALUE          once for each
  --label KEY=VALUE        once for each
";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() || words.iter().any(|word| word == "--help" || word == "-h") {
        print!("{USAGE}");
        return Ok(());
    }
    let (image, out) = parse(words)?;
    image.write(&out).with_context(|| format!("{} could not be written", out.display()))
}

/// Every option takes one value.
fn parse(words: Vec<String>) -> Result<(Image, PathBuf)> {
    let mut image = Image::default();
    let mut base = Vec::new();
    let mut out = None;
    let mut words = words.into_iter();
    while let Some(option) = words.next() {
        let value = words.next().with_context(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--name" => image.name = value,
            "--out" => out = Some(PathBuf::from(value)),
            "--base" => base.push(Added { source: value.into(), destination: "/".into(), mode: None }),
            "--add" => image.added.push(value.parse()?),
            "--user" => image.user = value,
            "--entrypoint" => image.entrypoint.push(value),
            "--cmd" => image.command.push(value),
            "--workdir" => image.working_directory = value,
            "--env" => image.environment.push(pair(&value)?.join("=")),
            "--label" => {
                let [key, value] = pair(&value)?;
                image.labels.insert(key, value);
            }
            _ => bail!("{option} is no option of image-tar\n\n{USAGE}"),
        }
    }
    image.added.splice(0..0, base);
    if image.name.is_empty() {
        bail!("--name is missing");
    }
    Ok((image, out.context("--out is missing")?))
}

fn pair(text: &str) -> Result<[String; 2]> {
    let (key, value) = text.split_once('=').with_context(|| format!("'{text}' is not KEY=VALUE"))?;
    Ok([key.to_owned(), value.to_owned()])
}
