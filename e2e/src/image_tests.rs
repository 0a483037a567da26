#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::*;
use std::io::Read;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

/// A folder with an executable, a plain file, a nested file and a link.
fn tree() -> TempDir {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    fs::write(root.join("run"), "#!").unwrap();
    fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(root.join("a"), "alpha").unwrap();
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(root.join("deep")).unwrap();
    fs::write(root.join("deep/z"), "zeta").unwrap();
    symlink("../a", root.join("deep/link")).unwrap();
    folder
}

fn image(added: Vec<Added>) -> Image {
    Image {
        name: "localhost/x:dev".into(),
        entrypoint: vec!["/app/run".into()],
        labels: BTreeMap::from([("k".into(), "v".into())]),
        added,
        ..Image::default()
    }
}

fn add(source: &Path, destination: &str, mode: Option<u32>) -> Added {
    Added { source: source.into(), destination: destination.into(), mode }
}

fn bytes(image: &Image) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("x.tar");
    image.write(&out).unwrap();
    fs::read(out).unwrap()
}

/// The files of an archive by name.
fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        })
        .collect()
}

/// `mode path [-> target]` of everything in a layer, in its order.
fn listing(layer: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(layer);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let target = entry.link_name().unwrap().map(|link| format!(" -> {}", link.display())).unwrap_or_default();
            format!("{:o} {}{target}", entry.header().mode().unwrap(), entry.path().unwrap().display())
        })
        .collect()
}

#[test]
fn a_folder_is_laid_out_whole_and_sorted_with_links_and_execute_bits() {
    let tree = tree();
    let files = files(&bytes(&image(vec![add(tree.path(), "/opt/app", None)])));
    assert_eq!(
        listing(&files["layer-1.tar"]),
        [
            "755 opt",
            "755 opt/app",
            "644 opt/app/a",
            "755 opt/app/deep",
            "777 opt/app/deep/link -> ../a",
            "644 opt/app/deep/z",
            "755 opt/app/run",
        ]
    );
}

#[test]
fn every_image_has_users_and_a_sticky_tmp_that_later_layers_do_not_reset() {
    let tree = tree();
    let files = files(&bytes(&image(vec![add(&tree.path().join("a"), "/tmp/a", None)])));
    let basics = listing(&files["layer-0.tar"]);
    assert!(basics.contains(&"644 etc/passwd".to_owned()), "{basics:?}");
    assert!(basics.contains(&"1777 tmp".to_owned()), "{basics:?}");
    assert_eq!(listing(&files["layer-1.tar"]), ["644 tmp/a"]);
}

#[test]
fn a_given_mode_wins_over_the_files_own() {
    let tree = tree();
    let files = files(&bytes(&image(vec![add(&tree.path().join("a"), "/a", Some(0o555))])));
    assert_eq!(listing(&files["layer-1.tar"]), ["555 a"]);
}

#[test]
fn the_config_names_the_digests_of_the_layers_as_they_stand_in_the_archive() {
    let tree = tree();
    let files = files(&bytes(&image(vec![add(tree.path(), "/app", None)])));
    let manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    let config_name = manifest[0]["Config"].as_str().unwrap();
    let config: Value = serde_json::from_slice(&files[config_name]).unwrap();
    assert_eq!(config_name, format!("{:x}.json", Sha256::digest(&files[config_name])));
    assert_eq!(manifest[0]["RepoTags"], json!(["localhost/x:dev"]));
    assert_eq!(manifest[0]["Layers"], json!(["layer-0.tar", "layer-1.tar"]));
    let digests: Vec<String> = ["layer-0.tar", "layer-1.tar"]
        .iter()
        .map(|layer| format!("sha256:{:x}", Sha256::digest(&files[*layer])))
        .collect();
    assert_eq!(config["rootfs"]["diff_ids"], json!(digests));
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"], json!(["/app/run"]));
    assert_eq!(config["config"]["Labels"], json!({"k": "v"}));
}

#[test]
fn the_same_files_make_the_same_bytes_whenever_they_were_written() {
    let (first, second) = (tree(), tree());
    File::open(second.path().join("a")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(
        bytes(&image(vec![add(first.path(), "/app", None)])),
        bytes(&image(vec![add(second.path(), "/app", None)]))
    );
}

#[test]
fn paths_longer_than_a_tar_header_survive() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("f"), "x").unwrap();
    let long = format!("/{}/{}", "d".repeat(120), "f".repeat(120));
    let files = files(&bytes(&image(vec![add(&folder.path().join("f"), &long, None)])));
    assert_eq!(listing(&files["layer-1.tar"])[1], format!("644 {}", &long[1..]));
}

#[test]
fn what_is_to_be_added_is_read_as_source_destination_and_octal_mode() {
    assert_eq!("a/b:/c:0755".parse::<Added>().unwrap(), add(Path::new("a/b"), "/c", Some(0o755)));
    assert_eq!("a:/c".parse::<Added>().unwrap(), add(Path::new("a"), "/c", None));
    for wrong in ["a", "a:c", ":/c", "a:/c:9", "a:/c:755:x"] {
        assert!(wrong.parse::<Added>().is_err(), "{wrong} was accepted");
    }
}

#[test]
fn a_source_that_is_not_there_is_named() {
    let folder = TempDir::new().unwrap();
    let error = image(vec![add(&folder.path().join("gone"), "/x", None)]).write(&folder.path().join("x.tar"));
    assert!(format!("{:#}", error.unwrap_err()).contains("gone is not there"));
}
