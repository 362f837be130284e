//! `systemctl list-units`, and patterns in the names of units.

use guest::{control::Status, glob};

use super::{
    arguments::Arguments,
    units::{State, Unit, full_name},
};

const HEAD: [&str; 5] = ["UNIT", "LOAD", "ACTIVE", "SUB", "DESCRIPTION"];

/// Puts the units that a pattern matches in its place; one that matches none stands for nothing.
pub(super) fn expand(status: &Status, names: &[String]) -> Vec<String> {
    let matching = |pattern: &str| -> Vec<String> {
        let all = Unit::all(status).map(|unit| full_name(&unit.service.name));
        all.filter(|name| glob::name_matches(pattern, name)).collect()
    };
    let one = |name: &String| if glob::is_pattern(name) { matching(name) } else { vec![name.clone()] };
    names.iter().flat_map(one).collect()
}

pub(super) fn print(status: &Status, arguments: &Arguments) -> u8 {
    let mut units: Vec<_> = Unit::all(status).filter(|unit| is_shown(unit, arguments)).collect();
    units.sort_by_key(|unit| full_name(&unit.service.name).to_lowercase());
    let rows: Vec<_> = units.iter().map(|unit| (unit.state == State::Failed, unit.columns())).collect();
    let heading = arguments.legend.then(|| (false, HEAD.map(str::to_owned)));
    let rows: Vec<_> = heading.into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|(_, row)| row[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3].map(width);
    for (failed, row) in &rows {
        let mark = match (arguments.plain, failed) {
            (true, _) => "",
            (false, true) => "● ",
            (false, false) => "  ",
        };
        let cells = widths.iter().zip(row).map(|(width, cell)| format!("{cell:width$} "));
        println!("{mark}{}{}", cells.collect::<String>(), row[4]);
    }
    if arguments.legend {
        let more = if arguments.all { "" } else { " Pass --all to see loaded but inactive units, too." };
        println!("\n{} loaded units listed.{more}", units.len());
    }
    0
}

/// Unlike with other verbs a name is the whole one, or a pattern of it.
fn is_shown(unit: &Unit<'_>, arguments: &Arguments) -> bool {
    let [full, load, active, sub, _] = unit.columns();
    let kind = full.rsplit('.').next().unwrap_or_default();
    (arguments.units.is_empty() || arguments.units.iter().any(|name| glob::name_matches(name, &full)))
        && (arguments.types.is_empty() || arguments.types.iter().any(|wanted| wanted == kind))
        && match arguments.states.is_empty() {
            true => arguments.all || unit.state != State::Inactive,
            false => arguments.states.iter().any(|state| [&load, &active, &sub].contains(&state)),
        }
}
