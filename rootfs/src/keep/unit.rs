//! Reads a systemd unit with its drop-ins as systemd would, and remembers where each line stands.

use super::files::Files;
use crate::ext4::Error;

/// Where units are looked for, the one that wins first (systemd.unit(5); transient and generated ones are not in an image).
pub(crate) const UNIT_FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/run/systemd/system",
];

/// One assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub file: String,
    pub number: usize,
    pub section: String,
    pub key: String,
    pub value: String,
}

/// A unit as the image has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    Absent,
    /// A link to /dev/null: the image's owner wants it never to start.
    Masked {
        path: String,
    },
    Lines(Vec<Line>),
}

/// Loads `name` (for example `envd.service`), its drop-ins behind it in systemd's order. `skip` names drop-ins of ours.
pub fn load(files: &impl Files, name: &str, skip: &str) -> Result<Unit, Error> {
    let Some(path) = find(files, name)? else { return Ok(Unit::Absent) };
    if files.link(&path)?.as_deref() == Some("/dev/null") {
        return Ok(Unit::Masked { path });
    }
    let mut lines = parse(&path, &files.text(&path)?.unwrap_or_default());
    for path in drop_ins(files, name, skip)? {
        lines.extend(parse(&path, &files.text(&path)?.unwrap_or_default()));
    }
    Ok(Unit::Lines(lines))
}

/// Whether some target wants the unit at boot (that is what `systemctl enable` makes).
pub fn is_wanted(files: &impl Files, name: &str) -> Result<bool, Error> {
    for folder in UNIT_FOLDERS {
        for entry in files.names(folder)? {
            let pulls_in = [".wants", ".requires", ".upholds"].iter().any(|end| entry.ends_with(end));
            if pulls_in && files.link(&format!("{folder}/{entry}/{name}"))?.is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Where a unit's file is; an instance (`name@x.service`) without one of its own has the template's.
pub(crate) fn find(files: &impl Files, name: &str) -> Result<Option<String>, Error> {
    if let Some(path) = find_exactly(files, name)? {
        return Ok(Some(path));
    }
    template(name).map_or(Ok(None), |template| find_exactly(files, &template))
}

/// `name@.service` for `name@x.service`.
pub(crate) fn template(name: &str) -> Option<String> {
    let (prefix, rest) = name.split_once('@')?;
    let (instance, kind) = rest.rsplit_once('.')?;
    (!instance.is_empty()).then(|| format!("{prefix}@.{kind}"))
}

fn find_exactly(files: &impl Files, name: &str) -> Result<Option<String>, Error> {
    for folder in UNIT_FOLDERS {
        let path = format!("{folder}/{name}");
        if files.link(&path)?.is_some() || files.exists(&path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// By file name; of two with one name the folder that comes first wins, and of folders with several names the one that fits best.
fn drop_ins(files: &impl Files, name: &str, skip: &str) -> Result<Vec<String>, Error> {
    let kind = name.rsplit('.').next().unwrap_or_default();
    let mut found = std::collections::BTreeMap::new();
    let mut names: Vec<String> = Vec::new();
    for name in aliases(files, name)? {
        names.extend(template(&name).into_iter().fold(prefixes(&name), |mut all, template| {
            all.extend(prefixes(&template));
            all
        }));
    }
    names.push(kind.to_owned());
    for name in names {
        for folder in UNIT_FOLDERS {
            let folder = format!("{folder}/{name}.d");
            for file in files.names(&folder)? {
                if file.ends_with(".conf") && file != skip {
                    found.entry(file.clone()).or_insert_with(|| format!("{folder}/{file}"));
                }
            }
        }
    }
    Ok(found.into_values().collect())
}

/// The unit's own name, and those of links to it for which there are drop-ins.
fn aliases(files: &impl Files, name: &str) -> Result<Vec<String>, Error> {
    let mut names = vec![name.to_owned()];
    for folder in UNIT_FOLDERS {
        for entry in files.names(folder)? {
            let Some(other) = entry.strip_suffix(".d").filter(|other| other.contains('.')) else { continue };
            if !names.iter().any(|known| known == other) && leads_to(files, other, name)? {
                names.push(other.to_owned());
            }
        }
    }
    Ok(names)
}

fn leads_to(files: &impl Files, alias: &str, name: &str) -> Result<bool, Error> {
    let mut alias = alias.to_owned();
    for _ in 0..8 {
        let Some(path) = find_exactly(files, &alias)? else { return Ok(false) };
        let Some(target) = files.link(&path)? else { return Ok(false) };
        let file = target.rsplit('/').next().unwrap_or_default();
        if file == name {
            return Ok(true);
        }
        file.clone_into(&mut alias);
    }
    Ok(false)
}

/// `a-b-c.service`, `a-b-.service`, `a-.service`: whose drop-ins are for all units that begin so.
fn prefixes(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    let stem = name.split(['@', '.']).next().unwrap_or_default();
    let tail = &name[stem.len()..];
    let ends = stem.match_indices('-').map(|(at, _)| at + 1).filter(|end| *end > 1 && *end < stem.len());
    let mut shorter: Vec<String> = ends.map(|end| format!("{}{tail}", &stem[..end])).collect();
    shorter.reverse();
    names.extend(shorter);
    names
}

/// Assignments of one file. A line that ends in a backslash goes on in the next; comments between do not end it.
fn parse(file: &str, text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut section = String::new();
    let mut open: Option<(usize, String)> = None;
    for (index, raw) in text.lines().enumerate() {
        if raw.trim_start().starts_with(['#', ';']) || (open.is_none() && raw.trim().is_empty()) {
            continue;
        }
        let (number, mut logical) = open.take().unwrap_or((index + 1, String::new()));
        if let Some(begin) = raw.strip_suffix('\\') {
            logical.push_str(begin);
            logical.push(' ');
            open = Some((number, logical));
            continue;
        }
        logical.push_str(raw);
        push(&mut lines, &mut section, file, number, logical.trim());
    }
    if let Some((number, logical)) = open {
        push(&mut lines, &mut section, file, number, logical.trim());
    }
    lines
}

fn push(lines: &mut Vec<Line>, section: &mut String, file: &str, number: usize, logical: &str) {
    if let Some(name) = logical.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        name.clone_into(section);
    } else if let Some((key, value)) = logical.split_once('=') {
        lines.push(Line {
            file: file.to_owned(),
            number,
            section: section.clone(),
            key: key.trim().to_owned(),
            value: value.trim().to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keep::files::fake::FakeFiles;

    fn lines(unit: Unit) -> Vec<(String, String)> {
        match unit {
            Unit::Lines(lines) => lines.into_iter().map(|line| (line.key, line.value)).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn continued_lines_are_joined_and_numbered_by_their_first() {
        let text =
            "[Service]\n# note\nExecStart=/usr/bin/envd \\\n# between\n  -verbose\n; end\n\nNice = 5\n";
        let parsed = parse("u", text);
        assert_eq!((parsed[0].number, parsed[0].value.as_str()), (3, "/usr/bin/envd    -verbose"));
        assert_eq!(
            (parsed[1].section.as_str(), parsed[1].key.as_str(), parsed[1].value.as_str()),
            ("Service", "Nice", "5")
        );
    }

    #[test]
    fn drop_ins_follow_by_name_and_the_owners_folder_wins() {
        let tree = FakeFiles::default()
            .file("/etc/systemd/system/envd.service", "[Service]\nNice=1\n")
            .file("/etc/systemd/system/envd.service.d/20-b.conf", "[Service]\nNice=2\n")
            .file("/usr/lib/systemd/system/envd.service.d/20-b.conf", "[Service]\nNice=9\n")
            .file("/usr/lib/systemd/system/service.d/10-a.conf", "[Service]\nUMask=077\n")
            .file("/usr/lib/systemd/system/envd.service.d/zz-ours.conf", "[Service]\nNice=8\n");
        let found = lines(load(&tree, "envd.service", "zz-ours.conf").unwrap());
        let expected =
            [("Nice", "1"), ("UMask", "077"), ("Nice", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(found, expected);
    }

    /// They had no effect: a unit was turned without what its owner had changed in it.
    #[test]
    fn drop_ins_by_prefix_and_by_alias_count_and_the_nearest_name_wins() {
        let drop_in = |files: FakeFiles, folder: &str, number: u32| {
            files.file(
                &format!("/etc/systemd/system/{folder}.d/x.conf"),
                &format!("[Service]\nNice={number}\n"),
            )
        };
        let nice = |files: &FakeFiles, name: &str| {
            let lines = lines(load(files, name, "").unwrap());
            lines.iter().filter(|(key, _)| key == "Nice").map(|(_, value)| value.clone()).collect::<String>()
        };
        let unit = || FakeFiles::default().file("/usr/lib/systemd/system/a-b-c.service", "[Service]\n");
        let files = drop_in(drop_in(unit(), "service", 1), "a-.service", 2);
        assert_eq!(nice(&files, "a-b-c.service"), "2");
        let files = drop_in(files, "a-b-.service", 3);
        assert_eq!(nice(&files, "a-b-c.service"), "3");
        assert_eq!(nice(&drop_in(files, "a-b-c.service", 4), "a-b-c.service"), "4");
        let alias = unit().to("/etc/systemd/system/other.service", "/usr/lib/systemd/system/a-b-c.service");
        assert_eq!(nice(&drop_in(alias, "other.service", 5), "a-b-c.service"), "5");
        assert_eq!(nice(&drop_in(unit(), "stranger.service", 6), "a-b-c.service"), "");
        assert_eq!(prefixes("-.mount"), ["-.mount"]);
        assert_eq!(prefixes("a-b@x-y.service"), ["a-b@x-y.service", "a-@x-y.service"]);
    }

    #[test]
    fn a_masked_unit_and_a_missing_one_are_told_apart() {
        let masked = FakeFiles::default().to("/etc/systemd/system/envd.service", "/dev/null");
        let path = "/etc/systemd/system/envd.service".to_owned();
        assert_eq!(load(&masked, "envd.service", "").unwrap(), Unit::Masked { path });
        assert_eq!(load(&FakeFiles::default(), "envd.service", "").unwrap(), Unit::Absent);
    }
}
