//! Names of programs that are already on a device, weir's or others'. Changes nothing.

use aya::programs::{SchedClassifier, loaded_programs, tc::TcAttachType};
use lb_common::abi::program;

/// Name of a loaded program, `program ID` where it has none; `None` where this process may not ask.
pub fn program_name(id: u32) -> Option<String> {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id)?;
    Some(match info.name_as_str() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => format!("program {id}"),
    })
}

/// Programs of others at the tcx hooks of a device, in their order: `tcx egress: name`. Empty on
/// kernels without tcx, as nothing can be there.
pub fn foreign_tcx(interface: &str) -> Vec<String> {
    [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")]
        .into_iter()
        .filter_map(|(hook, place)| {
            let (_, programs) = SchedClassifier::query_tcx(interface, hook).ok()?;
            Some(programs.into_iter().map(move |info| {
                let name = info.name_as_str().unwrap_or_default();
                (
                    place,
                    if name.is_empty() { format!("program {}", info.id()) } else { name.into() },
                )
            }))
        })
        .flatten()
        .filter(|(_, name)| name != program::EGRESS)
        .map(|(place, name)| format!("tcx {place}: {name}"))
        .collect()
}
