//! Puts the payload into an image that exists.
//!
//! | step | on which file | a kill leaves |
//! |---|---|---|
//! | copy, journal, e2fsck | temporary copy | base and old output as they were |
//! | revert an older version of ours | temporary copy | the same |
//! | plan, space, script, read back, e2fsck | temporary copy | the same |
//! | rename | output | the old output or the new one, whole |

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use crate::{
    copy,
    elf::Machine,
    ext4::{self, Image},
    hash, keep,
    layout::{Layout, Packages},
    manifest::{self, Envd, EnvdOrigin, Manifest, Mode},
    payload,
    plan::{self, Content, Plan},
    progress,
    revert::{self, revert_in_place},
    settings,
    tools::{self, Health, Tools},
    tree, units,
    workdir::{self, Workdir},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Image(#[from] ext4::Error),
    #[error(transparent)]
    Tool(#[from] tools::Error),
    #[error(transparent)]
    Plan(#[from] plan::Error),
    #[error(transparent)]
    Payload(#[from] payload::Error),
    #[error(transparent)]
    Keep(#[from] keep::Error),
    #[error(transparent)]
    Revert(#[from] revert::Error),
    #[error(transparent)]
    Settings(#[from] settings::Error),
    #[error(
        "these enabled units of the image would no longer start under our PID 1: {}. `rootfs inspect --units` says why; go on with \
         --accept-lost-units (make: ACCEPT_LOST_UNITS=1){way_out}", units.join(", ")
    )]
    LostUnits { units: Vec<String>, way_out: &'static str },
    #[error(transparent)]
    Workdir(#[from] workdir::Error),
    #[error("cannot {what} {}", path.display())]
    Host { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is both BASE and OUT; give another OUT, so that the base stays as it is", .0.display())]
    SameFile(PathBuf),
    #[error("{} lies in BASE ({}), and would become part of itself; write it elsewhere", out.display(), base.display())]
    Inside { base: PathBuf, out: PathBuf },
    #[error(
        "{} lies beside {}, the memory snapshot of a template: a resumed guest would see another disk than it remembers; rebuild the \
         template from the new image instead (copy the image elsewhere and bake that)", image.display(), snapshot.display()
    )]
    BesideSnapshot { image: PathBuf, snapshot: PathBuf },
    #[error("the machine of {} cannot be recognised (no ELF program in it); give --arch", .0.display())]
    UnknownMachine(PathBuf),
    #[error("{} is an image for {found}, and {wanted} was asked for", path.display(), found = found.name(), wanted = wanted.name())]
    OtherMachine { path: PathBuf, found: Machine, wanted: Machine },
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// What to put in.
#[derive(Debug, Clone)]
pub struct Request {
    /// Folder of the guest's programs.
    pub guest: PathBuf,
    pub envd: Option<PathBuf>,
    /// Goes in when the image has no envd and none is given.
    pub stand_in: Option<PathBuf>,
    pub mode: Mode,
    /// Required of the image when given.
    pub machine: Option<Machine>,
    /// Becomes `/etc/envd-init/config.toml`.
    pub config: Option<PathBuf>,
    /// A folder whose `*.toml` become services of the image's owner.
    pub services: Option<PathBuf>,
    pub accept_lost_units: bool,
}

/// What was done, for the report and the manifest beside the image.
#[derive(Debug)]
pub struct Outcome {
    pub layout: Layout,
    pub manifest: Manifest,
    /// The version that was replaced, if one was.
    pub upgraded_from: Option<String>,
    pub warnings: Vec<String>,
    /// Names of the image that were moved to the saved files.
    pub displaced: Vec<String>,
}

/// Files of a memory snapshot; an image beside one must not change.
const SNAPSHOT_FILES: [&str; 2] = ["memfile", "snapfile"];

/// Refuses what would harm: an output over the base, an image that belongs to a memory snapshot.
pub fn check_paths(base: &Path, out: &Path) -> Result<()> {
    let real = |path: &Path| path.canonicalize().ok();
    if real(base).is_some_and(|base| real(out) == Some(base)) {
        return Err(Error::SameFile(base.to_owned()));
    }
    let folder = out.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    if base.is_dir()
        && real(base).is_some_and(|base| real(folder).is_some_and(|folder| folder.starts_with(base)))
    {
        return Err(Error::Inside { base: base.to_owned(), out: out.to_owned() });
    }
    for path in [base, out] {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        for folder in [path.parent(), real.parent()].into_iter().flatten() {
            let found = SNAPSHOT_FILES.iter().map(|name| folder.join(name)).find(|file| file.exists());
            if let Some(snapshot) = found {
                return Err(Error::BesideSnapshot { image: path.to_owned(), snapshot });
            }
        }
    }
    Ok(())
}

/// A copy of the base in the working folder, its journal replayed, its tree clean. Returns the base's digest too.
pub fn take_base(base: &Path, workdir: &Workdir, epoch: Option<u64>) -> Result<(Tools, String)> {
    let open = |source| Error::Host { what: "open", path: base.to_owned(), source };
    let file = File::open(base).map_err(open)?;
    let superblock = Image::open(base)?.superblock;
    let len = file.metadata().map_err(open)?.len();
    let image = workdir.image();
    let digest = {
        let bar = progress::step("copy", "copying the base", Some(len));
        copy::copy(&file, &image, |bytes| bar.advance(bytes)).map_err(|source| Error::Host {
            what: "copy to",
            path: image.clone(),
            source,
        })?
    };
    workdir.flush_ahead(&image);
    // The base's own last write: a time that follows from the input, not from the clock.
    let tools = Tools::new(workdir.path(), epoch.unwrap_or_else(|| u64::from(superblock.written)));
    if superblock.needs_recovery() {
        let _step = progress::step("journal", "replaying the journal", None);
        tools.recover(&image).map_err(|error| name_the_base(error, base))?;
    }
    let _step = progress::step("check-base", "checking the base", None);
    require_clean(&tools, &image).map_err(|error| name_the_base(error, base))?;
    Ok((tools, digest))
}

/// Counts that are out of date, as tools that only replay a journal leave them, are no damage.
fn require_clean(tools: &Tools, image: &Path) -> std::result::Result<(), tools::Error> {
    match tools.check(image)? {
        Health::Clean => Ok(()),
        Health::StaleCounts(_) => {
            tools.recover(image)?;
            tools.require_clean(image)
        }
        Health::Damaged(detail) => Err(tools::Error::NotClean { image: image.to_owned(), detail }),
    }
}

fn name_the_base(error: tools::Error, base: &Path) -> tools::Error {
    let image = base.to_owned();
    match error {
        tools::Error::NotClean { detail, .. } => tools::Error::NotClean { image, detail },
        tools::Error::Recovery { detail, .. } => tools::Error::Recovery { image, detail },
        other => other,
    }
}

/// Puts the payload into a clean image that nobody else uses, and judges the result.
pub fn inject_in_place(request: &Request, tools: &Tools, image: &Path, subject: &Path) -> Result<Outcome> {
    let mut before = carry_over(tools, image)?;
    let opened = Image::open(image)?;
    let layout = Layout::of(&opened)?;
    let machine = machine(request, &layout, subject)?;
    let mut warnings = std::mem::take(&mut before.warnings);
    let mut plan = Plan::default();
    payload::programs(&mut plan, &request.guest, machine)?;
    let envd = choose_envd(request, &before, &layout, (machine, &opened), &mut plan, &mut warnings)?;
    match request.mode {
        Mode::Native => native(request, &opened, &layout, &mut plan, &mut warnings)?,
        Mode::Keep => {
            let keep = keep::plan(&opened)?;
            warnings.extend(keep.notes);
            for item in keep.plan.items {
                plan.push(item);
            }
        }
    }
    settings::configuration(&mut plan, &opened, request.config.as_deref(), envd.as_ref())?;
    let (manifest, displaced) = put_in(&plan, tools, image, &opened, |record| Manifest {
        format: manifest::FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mode: request.mode,
        arch: machine,
        envd,
        installed: record.installed,
        saved: record.saved,
        directories: record.directories,
        touched: record.touched,
    })?;
    Ok(Outcome { layout, manifest, upgraded_from: before.version, warnings, displaced })
}

/// What native mode puts in besides the programs: links, diversions, services. Fails when units would be lost unasked.
fn native(
    request: &Request,
    image: &Image,
    layout: &Layout,
    plan: &mut Plan,
    warnings: &mut Vec<String>,
) -> Result<()> {
    payload::native_links(plan, image)?;
    if layout.packages == Packages::Dpkg {
        payload::diversions(plan, image, layout.merged_usr)?;
    }
    let survey = units::survey(image)?;
    let lost: Vec<String> = survey.lost().map(|report| report.unit.clone()).collect();
    if !lost.is_empty() && !request.accept_lost_units {
        let can_keep =
            matches!(keep::recognise::recognise(image)?, keep::Init::Systemd | keep::Init::OpenRc { .. });
        let way_out = if can_keep { ", or keep the image's init with INIT=keep" } else { "" };
        return Err(Error::LostUnits { units: lost, way_out });
    }
    if !lost.is_empty() {
        warnings.push(format!("these units will no longer start: {}", lost.join(", ")));
    }
    warnings.extend(survey.warnings.iter().cloned());
    survey.add_to(plan);
    settings::shipped_services(plan);
    if let Some(folder) = &request.services {
        settings::own_services(plan, folder)?;
    }
    warnings.extend(settings::check_services(plan, image)?);
    Ok(())
}

/// Resolves, writes, reads back and checks a plan, with the manifest that describes it.
fn put_in(
    plan: &Plan,
    tools: &Tools,
    image: &Path,
    opened: &Image,
    describe: impl FnOnce(plan::Record) -> Manifest,
) -> Result<(Manifest, Vec<String>)> {
    let manifest = describe(plan.resolve(opened)?.record()?);
    let mut with_manifest = plan.clone();
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest has no keys that JSON cannot hold");
    with_manifest.file(manifest::PATH, Content::Bytes(text), 0o644);
    let resolved = with_manifest.resolve(opened)?;
    resolved.require_space(opened)?;
    {
        let _step = progress::step("write", "writing the payload", None);
        resolved.write(tools, image)?;
    }
    let _step = progress::step("check", "reading back and checking", None);
    resolved.read_back(&Image::open(image)?)?;
    tools.require_clean(image)?;
    Ok((manifest, resolved.displaced().into_iter().collect()))
}

/// What an older version of ours leaves to the new one.
#[derive(Debug, Default)]
struct Before {
    version: Option<String>,
    /// The envd that was baked in then.
    envd: Option<(Vec<u8>, EnvdOrigin)>,
    warnings: Vec<String>,
}

/// Takes an older version of ours out again, so that the new one goes into the image as it was.
fn carry_over(tools: &Tools, image: &Path) -> Result<Before> {
    let opened = Image::open(image)?;
    let Some(manifest) = revert::manifest(&opened)? else { return Ok(Before::default()) };
    let mut before = Before { version: Some(manifest.version.clone()), ..Before::default() };
    if let Some(envd) = manifest.envd.as_ref().filter(|envd| envd.origin != EnvdOrigin::Image)
        && let Some(found) = opened.find(envd.path.as_bytes())?
    {
        before.envd = Some((opened.contents(&found.inode)?, envd.origin));
    }
    before.warnings = revert_in_place(tools, image)?.warnings;
    Ok(before)
}

fn machine(request: &Request, layout: &Layout, image: &Path) -> Result<Machine> {
    match (layout.machine, request.machine) {
        (Some(found), Some(wanted)) if found != wanted => {
            Err(Error::OtherMachine { path: image.to_owned(), found, wanted })
        }
        (Some(machine), _) | (None, Some(machine)) => Ok(machine),
        (None, None) => Err(Error::UnknownMachine(image.to_owned())),
    }
}

fn choose_envd(
    request: &Request,
    before: &Before,
    layout: &Layout,
    (machine, image): (Machine, &Image),
    plan: &mut Plan,
    warnings: &mut Vec<String>,
) -> Result<Option<Envd>> {
    let path = layout.envd.as_ref().map_or("/usr/bin/envd", |found| found.path.as_str());
    let (bytes, origin) = match (&request.envd, &layout.envd, &before.envd, &request.stand_in) {
        (Some(given), ..) => (payload::program(given, machine)?, EnvdOrigin::Given),
        (None, None, Some((bytes, EnvdOrigin::Given)), _) => (bytes.clone(), EnvdOrigin::Given),
        (None, Some(found), ..) => {
            let sha256 = tree::sha256(image, &image.locate(found.path.as_bytes())?.inode)?;
            return Ok(Some(Envd { path: found.path.clone(), sha256, origin: EnvdOrigin::Image }));
        }
        (None, None, _, Some(stand_in)) => {
            warnings.push(
                "the image has no envd: a stand-in for tests goes in; give ENVD=path for a real one".into(),
            );
            (payload::program(stand_in, machine)?, EnvdOrigin::StandIn)
        }
        (None, None, ..) => {
            warnings.push(
                "the image has no envd, and none was given (ENVD=path): nothing will listen on port 49983"
                    .into(),
            );
            return Ok(None);
        }
    };
    let sha256 = hash::sha256(&bytes);
    plan.file(path, Content::Bytes(bytes), 0o755);
    Ok(Some(Envd { path: path.to_owned(), sha256, origin }))
}
