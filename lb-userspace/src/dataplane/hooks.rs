//! What sits at a device's hooks, weir's or others', as the kernel lists it. Changes nothing.

use futures::TryStreamExt;
use lb_common::abi::program;
use netlink_packet_route::{
    link::{LinkAttribute, LinkXdp, XdpAttached},
    tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
};

/// One device's hooks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hooks {
    /// Id of the program at the XDP hook.
    pub xdp: Option<u32>,
    /// It runs in the stack and not in the driver.
    pub xdp_generic: bool,
    /// Names of the filters of others at clsact's egress.
    pub egress_filters: Vec<String>,
    /// weir's own filter is there.
    pub own_filter: bool,
}

/// Asks the kernel, in the network namespace of the calling thread.
pub async fn read(ifindex: u32) -> Result<Hooks, rtnetlink::Error> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|error| rtnetlink::Error::NamespaceError(error.to_string()))?;
    let task = tokio::spawn(connection);
    let result = ask(&handle, ifindex).await;
    task.abort();
    result
}

async fn ask(handle: &rtnetlink::Handle, ifindex: u32) -> Result<Hooks, rtnetlink::Error> {
    let mut hooks = Hooks::default();
    let links: Vec<_> = handle.link().get().match_index(ifindex).execute().try_collect().await?;
    for attribute in links.iter().flat_map(|link| &link.attributes) {
        let LinkAttribute::Xdp(options) = attribute else { continue };
        for option in options {
            match option {
                LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id)
                    if *id != 0 =>
                {
                    hooks.xdp = Some(*id);
                }
                LinkXdp::Attached(mode) => hooks.xdp_generic = *mode == XdpAttached::SocketBuffer,
                _ => {}
            }
        }
    }
    let mut request = handle.traffic_filter(i32::try_from(ifindex).unwrap_or(i32::MAX));
    let filters: Vec<_> = request.get().egress().execute().try_collect().await?;
    for name in filters.iter().filter_map(filter_name) {
        match name.starts_with(program::EGRESS) {
            true => hooks.own_filter = true,
            false => hooks.egress_filters.push(name.to_owned()),
        }
    }
    hooks.egress_filters.dedup();
    Ok(hooks)
}

/// A BPF filter's program, else the filter's kind; none for the entry without rules by which the
/// kernel lists each priority.
fn filter_name(message: &TcMessage) -> Option<&str> {
    let mut kind = "filter";
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(name) => kind = name,
            TcAttribute::Options(options) => {
                return Some(options.iter().find_map(program_name).unwrap_or(kind));
            }
            _ => {}
        }
    }
    (kind != "bpf").then_some(kind)
}

fn program_name(option: &TcOption) -> Option<&str> {
    match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name),
        _ => None,
    }
}
