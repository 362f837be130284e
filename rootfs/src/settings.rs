//! Configuration and services of the image: what is pinned, and that all of it is right. What PID 1 only warns of is an error here.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use guest::{
    cmdline::Cmdline,
    config::{self, Config},
    service::{Service, builtin, check, load},
};

use crate::{
    ext4::{self, Image},
    keep::files::Files,
    layout,
    manifest::Envd,
    plan::{self, Content, Plan, What},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Image(#[from] ext4::Error),
    #[error(transparent)]
    Plan(#[from] plan::Error),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{what} is wrong, mend it and bake again: {}", problems.join("; "))]
    Wrong { what: String, problems: Vec<String> },
    #[error("{} holds no services (*.toml)", .0.display())]
    NoServices(PathBuf),
}

type Result<T> = std::result::Result<T, Error>;

fn wrong(what: impl Into<String>, problems: Vec<String>) -> Result<()> {
    if problems.is_empty() { Ok(()) } else { Err(Error::Wrong { what: what.into(), problems }) }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// Puts the configuration in: the given one or the image's, with envd pinned where others than root can write it.
pub fn configuration(
    plan: &mut Plan,
    image: &Image,
    given: Option<&Path>,
    envd: Option<&Envd>,
) -> Result<()> {
    let old = image.text(config::PATH)?;
    let mut text = match given {
        Some(path) => read(path)?,
        None => old.clone().unwrap_or_default(),
    };
    let name = given.map_or_else(|| config::PATH.to_owned(), |path| path.display().to_string());
    let parsed = config::parse(&text, &Cmdline::parse(""));
    wrong(&name, parsed.problems)?;
    wrong(&name, config::check(&parsed.value))?;
    if let Some(envd) = envd {
        text = pin(image, &name, text, &parsed.value, envd)?;
    }
    if old.as_ref() != Some(&text) && !text.is_empty() {
        plan.file(config::PATH, Content::Bytes(text.into_bytes()), 0o644);
    }
    Ok(())
}

/// The program and the sha256 that the image's configuration names.
pub fn pinned(image: &Image) -> std::result::Result<(Option<String>, Option<String>), ext4::Error> {
    let text = image.text(config::PATH)?.unwrap_or_default();
    let envd = config::parse(&text, &Cmdline::parse("")).value.envd;
    Ok((envd.program, envd.sha256))
}

/// What is wrong in the image's configuration.
pub fn configuration_problems(image: &Image) -> std::result::Result<Vec<String>, ext4::Error> {
    let text = image.text(config::PATH)?.unwrap_or_default();
    let read = config::parse(&text, &Cmdline::parse(""));
    Ok(read.problems.into_iter().chain(config::check(&read.value)).collect())
}

fn pin(image: &Image, name: &str, text: String, config: &Config, envd: &Envd) -> Result<String> {
    if let (Some(program), Some(pinned)) = (&config.envd.program, &config.envd.sha256) {
        let same = *program == envd.path && pinned.eq_ignore_ascii_case(&envd.sha256);
        let problem = format!(
            "envd.program and envd.sha256 pin {program} ({pinned}), but {} ({}) is baked",
            envd.path, envd.sha256
        );
        wrong(name, if same { Vec::new() } else { vec![problem] })?;
        return Ok(text);
    }
    let other = config.envd.program.as_ref().is_some_and(|program| *program != envd.path);
    if other || layout::runs_unpinned(image, &envd.path)? {
        return Ok(text);
    }
    let program =
        if config.envd.program.is_some() { String::new() } else { format!("program = {:?}\n", envd.path) };
    let pins = format!(
        "# Others than root can write there: only this very program is run.\n{program}sha256 = \"{}\"\n",
        envd.sha256
    );
    Ok(insert_pins(&text, &pins))
}

/// Into the table `[envd]` that is there, or into a new one.
fn insert_pins(text: &str, pins: &str) -> String {
    let header = |line: &str| line.split('#').next().unwrap_or_default().trim() == "[envd]";
    if !text.lines().any(header) {
        let gap = if text.is_empty() { "" } else { "\n" };
        return format!("{text}{gap}[envd]\n{pins}");
    }
    text.lines()
        .map(|line| if header(line) { format!("{line}\n{pins}") } else { format!("{line}\n") })
        .collect()
}

/// Puts the owner's services in: each `*.toml` of a folder.
pub fn own_services(plan: &mut Plan, folder: &Path) -> Result<()> {
    let unreadable = |source| Error::Read { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    if paths.is_empty() {
        return Err(Error::NoServices(folder.to_owned()));
    }
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        plan.file(&format!("{}/{name}", load::OWN), Content::Bytes(read(&path)?.into_bytes()), 0o644);
    }
    Ok(())
}

/// What is compiled into PID 1 is also put into the image, to be read and overridden.
pub fn shipped_services(plan: &mut Plan) {
    for (name, text) in builtin::texts() {
        let path = format!("{}/{name}.toml", load::SHIPPED);
        if !plan.items.iter().any(|item| item.path == path) {
            plan.file(&path, Content::Bytes(text.as_bytes().to_vec()), 0o644);
        }
    }
}

/// Requires that the owner's services, as the image will have them, are right one by one and together with the others.
/// What is wrong in a shipped one is no mistake of whoever bakes: it is given back, to be said.
pub fn check_services(plan: &Plan, image: &Image) -> Result<Vec<String>> {
    let (services, mut problems) = services(plan, image)?;
    let exists = |path: &Path| {
        let text = path.display().to_string();
        plan.items.iter().any(|item| item.path == text) || image.exists(&text).unwrap_or(false)
    };
    problems.extend(check::check(&services, &exists));
    let own: Vec<String> =
        folder_services(plan, image, load::OWN)?.into_iter().map(|(name, ..)| name).collect();
    let is_shipped = |problem: &String| {
        let name = problem.strip_prefix("service ").and_then(|rest| rest.split(": ").next());
        problem.starts_with(load::SHIPPED) || name.is_some_and(|name| !own.iter().any(|own| own == name))
    };
    let (shipped, owners) = problems.into_iter().partition(is_shipped);
    wrong("services.d", owners)?;
    Ok(shipped)
}

/// All services by name, and what is wrong in their files.
pub fn services(plan: &Plan, image: &Image) -> Result<(BTreeMap<String, Service>, Vec<String>)> {
    let mut services = BTreeMap::new();
    let mut problems = Vec::new();
    let texts = builtin::texts().map(|(name, text)| (name.to_owned(), String::new(), text.to_owned()));
    let mut all: Vec<(String, String, String)> = texts.collect();
    for folder in [load::SHIPPED, load::OWN] {
        all.extend(folder_services(plan, image, folder)?);
    }
    for (name, path, text) in all {
        if text.trim().is_empty() {
            services.remove(&name);
            continue;
        }
        let parsed = Service::parse(&name, &text);
        problems.extend(parsed.problems.into_iter().map(|problem| format!("{path}: {problem}")));
        services.insert(name, parsed.value);
    }
    Ok((services, problems))
}

/// Name, path and text of each file in one folder; planned files come before the image's.
fn folder_services(plan: &Plan, image: &Image, folder: &str) -> Result<Vec<(String, String, String)>> {
    let mut texts = BTreeMap::new();
    for name in image.names(folder)? {
        let path = format!("{folder}/{name}");
        texts.insert(name, image.text(&path)?.unwrap_or_default());
    }
    for item in &plan.items {
        let name = item.path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
        if let (Some(name), What::File { content, .. }) = (name, &item.what) {
            texts.insert(name.to_owned(), String::from_utf8_lossy(&content.read()?).into_owned());
        }
    }
    let named = texts.into_iter().filter_map(|(file, text)| {
        Some((file.strip_suffix(".toml")?.to_owned(), format!("{folder}/{file}"), text))
    });
    Ok(named.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_go_into_the_table_that_is_there() {
        let text =
            insert_pins("[log]\ndebug = true\n[envd] # ours\nstart_timeout_ms = 5\n", "program = \"/p\"\n");
        assert_eq!(text, "[log]\ndebug = true\n[envd] # ours\nprogram = \"/p\"\nstart_timeout_ms = 5\n");
        let config = config::parse(&text, &Cmdline::parse(""));
        assert_eq!((config.value.envd.program.as_deref(), config.problems.len()), (Some("/p"), 0));
        assert_eq!(insert_pins("", "a\n"), "[envd]\na\n");
    }
}
