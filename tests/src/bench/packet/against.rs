//! The object of an earlier revision beside today's: the same rows in the same rounds.
//!
//! Its maps are filled by the same code, byte by byte (`rig::raw`). What is known to differ:
//! layout 1 has settings without the age for giving way, and no `YIELDS`; layouts 1 and 2 have no
//! `CLAIMS`, and say a node's death in each backend instead of in its hop. The rows use none of it.
//! Whether a row can be compared is not taken from a version but tried: before anything is measured,
//! both objects meet its frame, and it counts only if they say the same and come to know the same.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, MapData};
use lb_common::abi::map;
use lb_common::arrival::{Arrival, ArrivalKey};
use serde::Serialize;

use super::cells::{self, Cell, Loaded};
use super::{FLOWS, ProgramSize, Rigs, Row, sizes};
use crate::bench::Goal;
use crate::rig::{Action, Rig};

/// What forwarding may cost of what it did, in minima.
const AT_MOST: f64 = 1.05;

/// The earlier object, with the bench's maps.
pub struct Earlier {
    /// Name of the object without its extension, which is the commit.
    pub revision: String,
    pub rig: Rig,
    /// Rows that the two objects do not do alike.
    pub remarks: Vec<String>,
}

/// What was found beside it.
#[derive(Debug, Serialize)]
pub struct Against {
    pub revision: String,
    pub rows: Vec<Compared>,
    pub programs: Vec<ProgramSize>,
    pub remarks: Vec<String>,
}

/// One cell of the earlier object, and today's figures as parts of it.
#[derive(Debug, Serialize)]
pub struct Compared {
    #[serde(flatten)]
    pub earlier: Row,
    pub min_ratio: f64,
    pub median_ratio: f64,
}

impl Earlier {
    pub fn load(object: &Path) -> Result<Self> {
        let name = object.file_stem().context("the earlier object has no name")?;
        let bytes = fs::read(object).with_context(|| format!("read {}", object.display()))?;
        Ok(Self {
            revision: name.to_string_lossy().into_owned(),
            rig: Rig::load_earlier(&bytes, cells::SIZES).context(TOO_OLD)?,
            remarks: Vec::new(),
        })
    }

    /// What `rows` of today are of those that this object had.
    pub fn compared(self, today: &[Row], rows: Vec<Row>) -> Result<Against> {
        let compare = |earlier: Row| {
            let now =
                today.iter().find(|row| (row.name, row.flows) == (earlier.name, earlier.flows));
            let now = now.context("a row of the earlier object alone")?;
            Ok(Compared {
                min_ratio: now.min_ns as f64 / earlier.min_ns as f64,
                median_ratio: now.median_ns as f64 / earlier.median_ns as f64,
                earlier,
            })
        };
        Ok(Against {
            rows: rows.into_iter().map(compare).collect::<Result<_>>()?,
            programs: sizes(&self.rig)?,
            revision: self.revision,
            remarks: self.remarks,
        })
    }
}

pub const TOO_OLD: &str =
    "the revision is too old to compare: its object does not go with today's maps";

/// What an object makes of one frame.
#[derive(PartialEq)]
struct Trial {
    action: Action,
    frame: Vec<u8>,
    /// Flows that it came to know.
    learnt: usize,
}

/// Cells that the earlier object does like today's; remarks on the others, and on those whose bytes
/// differ although the fate does not.
pub fn comparable(rigs: &mut Rigs, cells: &[Cell]) -> Result<Vec<bool>> {
    let Some(earlier) = &mut rigs.earlier else {
        return Ok(vec![false; cells.len()]);
    };
    let mut alike = Vec::new();
    for cell in cells {
        let Loaded::Product(program) = cell.program else {
            alike.push(false);
            continue;
        };
        let now = Trial::of(&mut rigs.product, program, &cell.frame)?;
        let then = Trial::of(&mut earlier.rig, program, &cell.frame).context(TOO_OLD)?;
        alike.push(now.action == then.action && now.learnt == then.learnt);
        if now != then {
            let difference = match (now.action == then.action, now.learnt == then.learnt) {
                (false, _) => format!("not compared: {:?}, not {:?}", then.action, now.action),
                (_, false) => format!(
                    "not compared: it knows {} more flows after it, not {}",
                    then.learnt, now.learnt
                ),
                _ => "other bytes come out".into(),
            };
            earlier.remarks.push(format!("{}: {difference}", cell.name));
        }
    }
    let none = "the revision is too old to compare: it does none of the rows as today";
    ensure!(alike.contains(&true), "{none}: {}", earlier.remarks.join("; "));
    Ok(alike)
}

impl Trial {
    fn of(rig: &mut Rig, program: &str, frame: &[u8]) -> Result<Self> {
        let before = known(rig)?;
        let (action, frame) = rig.verdict(program, frame)?;
        Ok(Self { action, frame, learnt: known(rig)? - before })
    }
}

/// Flows in the maps to which one packet can add.
fn known(rig: &mut Rig) -> Result<usize> {
    let mut flows = 0;
    for name in [map::OPENING, map::DATAGRAMS] {
        let map: HashMap<&mut MapData, ArrivalKey, Arrival> = rig.map(name)?;
        flows += map.keys().count();
    }
    Ok(flows)
}

/// Forwarding must not get slower.
pub fn goals(against: &Against) -> Vec<Goal> {
    let forward = against.rows.iter().filter(|row| row.earlier.name.starts_with("forward"));
    forward
        .map(|row| {
            let name = format!("{} / earlier, {} flows", row.earlier.name, row.earlier.flows);
            Goal::at_most(name, AT_MOST, row.min_ratio)
        })
        .collect()
}

pub fn print(against: &Against, programs: &[ProgramSize]) {
    println!("\nbeside {}: its ns, min / median, and ours as parts of them", against.revision);
    for cells in against.rows.chunks(FLOWS.len()) {
        let figures: String = cells
            .iter()
            .map(|cell| {
                let Row { min_ns, median_ns, .. } = cell.earlier;
                let mark = if cell.min_ratio > AT_MOST { '!' } else { ' ' };
                let ratios = format!("×{:.2} / {:.2}", cell.min_ratio, cell.median_ratio);
                format!("{:>28}", format!("{min_ns} / {median_ns} {ratios}{mark}"))
            })
            .collect();
        println!("{:<20}{figures}", cells[0].earlier.name);
    }
    for then in &against.programs {
        let Some(now) = programs.iter().find(|now| now.name == then.name) else {
            println!("{}: only then", then.name);
            continue;
        };
        println!(
            "{}: {} verified instructions then, {} now; {} bytes then, {} now",
            then.name,
            then.verified_instructions,
            now.verified_instructions,
            then.translated_bytes,
            now.translated_bytes
        );
    }
    for remark in &against.remarks {
        println!("{remark}");
    }
}
