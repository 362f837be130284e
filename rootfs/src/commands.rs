//! What each command does, step by step.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process,
};

use crate::{
    build::{self, Geometry},
    cli::{Bake, Build, Cli, Command, Diff, GeometryArgs, Inspect, Payload, PayloadArgs, Revert, Verify},
    diff::{self, Change, Difference},
    elf::Machine,
    enlarge,
    exit::{Exit, Failure},
    ext4::Image,
    format, hash,
    inject::{self, Outcome, Request},
    inspect,
    outcome::{self, Beside, Digest, ImageFacts, Input},
    payload_tar, progress,
    revert::revert_in_place,
    source::{self, Source},
    tools::Tools,
    units,
    verify::{self, Floors, Verdict},
    workdir::Workdir,
};

/// Room for the payload and an envd in an image that is built for them.
const PAYLOAD_RESERVE_MIB: u64 = 32;

type Result<T> = std::result::Result<T, Failure>;

pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Build(args) => build(&args),
        Command::Inject(args) => inject(&args.base, &args.out, args.size, &args.payload),
        Command::Bake(args) => bake(&args),
        Command::Revert(args) => revert(&args),
        Command::Verify(args) => verify(&args),
        Command::Inspect(args) => inspect(&args),
        Command::Diff(args) => diff(&args),
        Command::Payload(args) => payload(&args),
    }
}

fn say(text: &str) {
    eprintln!("rootfs: {text}");
}

fn lock(out: &Path) -> Result<Workdir> {
    Ok(Workdir::lock(out, || say(&format!("another run is writing {}; waiting for it", out.display())))?)
}

/// `SOURCE_DATE_EPOCH`, when it is set.
fn source_date_epoch() -> Result<Option<u64>> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => Ok(None),
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => {
            text.parse().ok().filter(|epoch| u32::try_from(*epoch).is_ok()).map(Some).ok_or_else(|| {
                Failure::usage(format!("SOURCE_DATE_EPOCH={text} is no number of seconds since 1970"))
            })
        }
    }
}

fn build(args: &Build) -> Result<()> {
    inject::check_paths(&args.source, &args.out)?;
    let workdir = lock(&args.out)?;
    let (base, tools) = make(&args.source, &args.geometry, 0, &workdir)?;
    let free = publish(&workdir, base, &tools, None)?;
    say(&format!("{} is built: {free} MiB free", args.out.display()));
    Ok(())
}

/// Builds the image in the working folder.
fn make(base: &Path, args: &GeometryArgs, reserve_mib: u64, workdir: &Workdir) -> Result<(Input, Tools)> {
    let given = source_date_epoch()?;
    let source = read_source(base, workdir, given)?;
    for note in &source.notes {
        say(&format!("warning: {note}"));
    }
    let tools = Tools::new(workdir.path(), build::epoch(&source, given));
    let geometry =
        Geometry { size_mib: args.size, label: Some(args.label.clone()), uuid: args.uuid, reserve_mib };
    {
        let _step = progress::step("build", "making the filesystem", None);
        let image = workdir.image();
        workdir.flush_while(&image, || build::build(&source, &geometry, &tools, &image))??;
    }
    let kind = if base.is_dir() { "folder" } else { "tar" };
    if kind == "tar" {
        workdir.discard(&source.folder);
    }
    Ok((Input { kind, digest: Digest::Sha256(source.sha256) }, tools))
}

fn read_source(base: &Path, workdir: &Workdir, latest: Option<u64>) -> Result<Source> {
    let latest = latest.map(|epoch| epoch as i64);
    if base.is_dir() {
        let _step = progress::step("read", "reading the folder", None);
        return Ok(source::scan(base, latest)?);
    }
    let _step = progress::step("read", "unpacking the tar", None);
    let input = source::input::open(base).map_err(|error| Failure::input(base, &error))?;
    source::unpack(input, &workdir.staging(size_of(base))?, latest).map_err(|error| {
        let is_no_tar = matches!(error, source::Error::Tar(source::tar::Error::BadHeader(0)));
        let hint = if is_no_tar { format::hint(base) } else { String::new() };
        Failure::from(error).about(&source::input::name(base)).with(&hint)
    })
}

/// How many bytes an archive unpacks to, where that can be told.
fn size_of(archive: &Path) -> Option<u64> {
    let packed = ["gz", "tgz", "xz", "txz", "zst", "bz2"];
    let is_packed =
        archive.extension().is_some_and(|extension| packed.iter().any(|packed| extension == *packed));
    fs::metadata(archive).ok().filter(|meta| meta.is_file() && !is_packed).map(|meta| meta.len())
}

fn request(args: &PayloadArgs) -> Request {
    // Programs run in another folder; relative paths are made whole first.
    let whole = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    Request {
        guest: whole(&args.guest),
        envd: args.envd.as_ref().map(whole),
        stand_in: args.stand_in.as_ref().map(whole),
        mode: args.init,
        machine: args.arch,
        config: args.config.as_ref().map(whole),
        services: args.services.as_ref().map(whole),
        accept_lost_units: args.accept_lost_units,
    }
}

fn inject(base: &Path, out: &Path, size: Option<u64>, args: &PayloadArgs) -> Result<()> {
    inject::check_paths(base, out)?;
    let workdir = lock(out)?;
    let (tools, digest) = inject::take_base(base, &workdir, source_date_epoch()?)?;
    if let Some(mib) = size {
        enlarge::enlarge(&tools, &workdir.image(), mib)?;
    }
    let input = Input { kind: "ext4", digest: Digest::Sha256ByMib(digest) };
    finish(base, out, args, &workdir, input, &tools)
}

/// Puts the payload into the image in the working folder and makes it the output.
fn finish(
    base: &Path,
    out: &Path,
    args: &PayloadArgs,
    workdir: &Workdir,
    input: Input,
    tools: &Tools,
) -> Result<()> {
    let outcome = inject::inject_in_place(&request(args), tools, &workdir.image(), base)?;
    for warning in &outcome.warnings {
        say(&format!("warning: {warning}"));
    }
    let free = publish(workdir, input, tools, Some(&outcome))?;
    let manifest = &outcome.manifest;
    let envd =
        manifest.envd.as_ref().map_or_else(|| "no envd".to_owned(), |envd| format!("envd at {}", envd.path));
    let upgraded =
        outcome.upgraded_from.map(|version| format!(" (in place of {version})")).unwrap_or_default();
    say(&format!(
        "{} is baked: envd-init {}{upgraded}, {} init, {envd}, {free} MiB free",
        out.display(),
        manifest.version,
        manifest.mode.name()
    ));
    Ok(())
}

fn bake(args: &Bake) -> Result<()> {
    let base = match &args.base {
        Some(base) => base.clone(),
        None => default_base(&args.payload)?,
    };
    if base.is_file() && is_ext4(&base) {
        return inject(&base, &args.out, args.geometry.size, &args.payload);
    }
    inject::check_paths(&base, &args.out)?;
    let workdir = lock(&args.out)?;
    let (input, tools) = make(&base, &args.geometry, PAYLOAD_RESERVE_MIB, &workdir)?;
    finish(&base, &args.out, &args.payload, &workdir, input, &tools)
}

/// The Debian base's tar, made by its script when absent.
fn default_base(args: &PayloadArgs) -> Result<PathBuf> {
    const SCRIPT: &str = "scripts/base-image";
    if !Path::new(SCRIPT).is_file() {
        return Err(Failure::usage(
            "no BASE was given, and scripts/base-image, which makes the default one, is not here",
        ));
    }
    let arch = args.arch.unwrap_or(Machine::X86_64).debian();
    let output = process::Command::new(SCRIPT).arg(arch).stderr(process::Stdio::inherit()).output();
    let output = output.map_err(|error| Failure::input(Path::new(SCRIPT), &error))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.lines().last() {
        Some(path) if output.status.success() => Ok(path.into()),
        _ => Err(Failure::new(
            Exit::Input,
            "the default base could not be made; the lines above say why, BASE= takes another one",
        )),
    }
}

/// A tar never has the magic number of ext4 where a superblock has it.
fn is_ext4(path: &Path) -> bool {
    use std::os::unix::fs::FileExt;
    let mut magic = [0; 2];
    File::open(path).is_ok_and(|file| file.read_exact_at(&mut magic, 1024 + 0x38).is_ok())
        && magic == [0x53, 0xef]
}

/// Gives image and manifest their final names. Returns the free space in MiB.
fn publish(workdir: &Workdir, base: Input, tools: &Tools, outcome: Option<&Outcome>) -> Result<u64> {
    let image = workdir.image();
    let facts = ImageFacts::new(&Image::open(&image)?.superblock);
    let free = facts.free_bytes / (1 << 20);
    let beside = Beside::new(facts, base, tools.version()?, tools.epoch());
    let beside = match outcome {
        Some(outcome) => beside.with(outcome),
        None => beside,
    };
    let manifest = workdir.path().join("manifest.json");
    fs::write(&manifest, json(&beside)).map_err(|error| Failure::output(&manifest, &error))?;
    let named = outcome::path(workdir.output());
    workdir.publish(&[(&image, workdir.output()), (&manifest, &named)])?;
    Ok(free)
}

fn revert(args: &Revert) -> Result<()> {
    inject::check_paths(&args.image, &args.out)?;
    let workdir = lock(&args.out)?;
    let (tools, _) = inject::take_base(&args.image, &workdir, source_date_epoch()?)?;
    let reverted = revert_in_place(&tools, &workdir.image())?;
    for warning in &reverted.warnings {
        say(&format!("warning: {warning}"));
    }
    tools.require_clean(&workdir.image())?;
    workdir.publish(&[(&workdir.image(), workdir.output())])?;
    // A manifest beside the output would describe what is no longer in it.
    let _ = fs::remove_file(outcome::path(workdir.output()));
    say(&format!("{} is as it was before envd-init {}", args.out.display(), reverted.manifest.version));
    Ok(())
}

fn verify(args: &Verify) -> Result<()> {
    let image = std::path::absolute(&args.image).map_err(|error| Failure::input(&args.image, &error))?;
    let default = Floors::default();
    let floors = Floors {
        free_mib: args.min_free.unwrap_or(default.free_mib),
        free_inodes: args.min_inodes.unwrap_or(default.free_inodes),
    };
    let checks = verify::verify(&image, &Tools::new(Path::new("/"), 1), floors)?;
    let failed = checks.iter().filter(|check| check.verdict == Verdict::Failed).count();
    if args.json {
        print(&json(&serde_json::json!({ "ok": failed == 0, "checks": checks })));
    } else {
        let rows = checks.iter().map(|check| {
            let word = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Failed => "FAILED",
            };
            format!("{word:<8} {:<14} {}\n", check.name, check.detail)
        });
        print(&rows.collect::<String>());
    }
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Exit::CheckFailed,
        format!("{failed} of {} checks failed for {}", checks.len(), args.image.display()),
    ))
}

fn inspect(args: &Inspect) -> Result<()> {
    let image = Image::open(&args.image)?;
    if args.units {
        let survey = units::survey(&image)?;
        print(&if args.json { json(&units::json(&survey)) } else { units::text(&survey) });
        return Ok(());
    }
    let facts = inspect::facts(&image)?;
    print(&if args.json { json(&facts) } else { inspect::text(&facts) });
    Ok(())
}

fn diff(args: &Diff) -> Result<()> {
    let differences = diff::diff(&Image::open(&args.a)?, &Image::open(&args.b)?, args.times)?;
    if args.json {
        print(&json(&differences));
    } else {
        print(&differences.iter().map(difference_line).collect::<String>());
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Differ, format!("{} differences", differences.len())))
}

fn difference_line(difference: &Difference) -> String {
    let sign = match difference.change {
        Change::Added => '+',
        Change::Removed => '-',
        Change::Changed => '~',
    };
    let what = if difference.what.is_empty() {
        difference.kind.name().to_owned()
    } else {
        difference.what.join(", ")
    };
    format!("{sign} {}  {what}\n", difference.path)
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("nothing here has keys that JSON cannot hold") + "\n"
}

/// A reader that went away (`| head`) is no error.
fn print(text: &str) {
    use std::io::Write;
    let _ = io::stdout().write_all(text.as_bytes());
}

fn payload(args: &Payload) -> Result<()> {
    let workdir = lock(&args.out)?;
    let tar = payload_tar::make(&args.guest, args.arch, source_date_epoch()?.unwrap_or(0))?;
    let part = workdir.path().join("payload");
    fs::write(&part, &tar).map_err(|error| Failure::output(&part, &error))?;
    workdir.publish(&[(&part, workdir.output())])?;
    say(&format!(
        "{} holds the payload ({} KiB, sha256 {})",
        args.out.display(),
        tar.len() / 1024,
        hash::sha256(&tar)
    ));
    Ok(())
}
