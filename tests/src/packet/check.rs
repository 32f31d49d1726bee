//! Reads a frame back: every field by name, every length and checksum that is wrong, and a
//! difference that a person can read.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{internet_checksum, pseudo_header};

/// UDP port behind which Geneve headers are read.
const TUNNEL_PORT: u16 = lb_common::globals::DEFAULT_TUNNEL_PORT;

/// All fields of the frame, outermost first: (name, value).
pub fn describe(frame: &[u8]) -> Vec<(String, String)> {
    let mut reader = Reader::default();
    if let Err(complaint) = reader.ethernet(frame) {
        reader.complaints.push(complaint);
    }
    reader.fields
}

/// Complains of every length and checksum in the frame that is wrong, inner packets included.
/// A UDP checksum of 0 is right over IPv4 and in the tunnel (RFC 768, RFC 6935).
pub fn check(frame: &[u8]) -> Result<(), String> {
    let mut reader = Reader::default();
    if let Err(complaint) = reader.ethernet(frame) {
        reader.complaints.push(complaint);
    }
    if reader.complaints.is_empty() { Ok(()) } else { Err(reader.complaints.join("; ")) }
}

/// Where two frames differ, by field and by byte; `None` where they are equal.
pub fn difference(want: &[u8], got: &[u8]) -> Option<String> {
    if want == got {
        return None;
    }
    let (wanted, gotten) = (describe(want), describe(got));
    let mut text = String::from("field: wanted / got\n");
    for (name, value) in &wanted {
        match gotten.iter().find(|(other, _)| other == name) {
            Some((_, other)) if other == value => {}
            Some((_, other)) => writeln!(text, "  {name}: {value} / {other}").unwrap(),
            None => writeln!(text, "  {name}: {value} / -").unwrap(),
        }
    }
    for (name, value) in
        gotten.iter().filter(|(name, _)| !wanted.iter().any(|(other, _)| other == name))
    {
        writeln!(text, "  {name}: - / {value}").unwrap();
    }
    if let Err(complaint) = check(got) {
        writeln!(text, "  got is wrong: {complaint}").unwrap();
    }
    writeln!(
        text,
        "wanted ({} bytes):\n{}got ({} bytes):\n{}",
        want.len(),
        hex(want),
        got.len(),
        hex(got)
    )
    .unwrap();
    Some(text)
}

/// Sixteen bytes a line with their offset; at most 16 lines.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, chunk) in bytes.chunks(16).enumerate().take(16) {
        let digits: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "  {:04x}  {}", line * 16, digits.join(" ")).unwrap();
    }
    text
}

/// Source port of the outer UDP header and the inner packet of a tunnel frame, with any VLAN tags.
pub fn unwrap_tunnel(frame: &[u8]) -> Option<(u16, Vec<u8>)> {
    let mut reader = Reader::default();
    reader.ethernet(frame).ok()?;
    reader.tunnel
}

/// Walks a frame; a complaint that stops the walk is an `Err`.
#[derive(Default)]
struct Reader {
    fields: Vec<(String, String)>,
    complaints: Vec<String>,
    layer: &'static str,
    tunnel: Option<(u16, Vec<u8>)>,
}

type Step = Result<(), String>;

impl Reader {
    fn note(&mut self, name: &str, value: impl ToString) {
        self.fields.push((format!("{}{name}", self.layer), value.to_string()));
    }

    fn complain(&mut self, text: String) {
        self.complaints.push(format!("{}{text}", self.layer));
    }

    fn ethernet(&mut self, frame: &[u8]) -> Step {
        let header = cut(frame, 0, 14, "eth")?;
        self.note("eth.destination", mac(&header[..6]));
        self.note("eth.source", mac(&header[6..12]));
        let mut ethertype = be16(header, 12);
        let mut rest = &frame[14..];
        let mut tag = 0;
        while matches!(ethertype, 0x8100 | 0x88a8) {
            tag += 1;
            let header = cut(rest, 0, 4, "vlan")?;
            self.note(&format!("vlan{tag}"), format!("{ethertype:04x}:{:04x}", be16(header, 0)));
            ethertype = be16(header, 2);
            rest = &rest[4..];
        }
        self.note("eth.type", format!("{ethertype:04x}"));
        match ethertype {
            0x0800 => self.ipv4(rest),
            0x86dd => self.ipv6(rest),
            0x0806 => self.arp(rest),
            _ => {
                self.note("payload", hex(rest));
                Ok(())
            }
        }
    }

    fn arp(&mut self, bytes: &[u8]) -> Step {
        let arp = cut(bytes, 0, 28, "arp")?;
        self.note("arp.head", format!("{:02x?}", &arp[..6]));
        self.note("arp.operation", be16(arp, 6));
        self.note("arp.sender", format!("{} {}", mac(&arp[8..14]), v4(arp, 14)));
        self.note("arp.target", format!("{} {}", mac(&arp[18..24]), v4(arp, 24)));
        Ok(())
    }

    fn ipv4(&mut self, bytes: &[u8]) -> Step {
        let first = cut(bytes, 0, 20, "ipv4")?;
        let length = usize::from(first[0] & 15) * 4;
        let header = cut(bytes, 0, length.max(20), "ipv4 options")?;
        let total = usize::from(be16(header, 2));
        if total < length || total > bytes.len() {
            return Err(format!("{}ipv4 length {total} of {}", self.layer, bytes.len()));
        }
        if internet_checksum(&[header]) != 0 {
            self.complain(format!("ipv4 checksum {:04x}", be16(header, 10)));
        }
        self.note("ipv4.version", header[0] >> 4);
        self.note("ipv4.tos", format!("{:02x}", header[1]));
        self.note("ipv4.length", total);
        self.note("ipv4.id", be16(header, 4));
        self.note("ipv4.fragment", format!("{:04x}", be16(header, 6)));
        self.note("ipv4.ttl", header[8]);
        self.note("ipv4.checksum", format!("{:04x}", be16(header, 10)));
        self.note("ipv4.options", format!("{:02x?}", &header[20..]));
        let (source, destination) = (v4(header, 12).into(), v4(header, 16).into());
        self.addresses(source, destination);
        if bytes.len() > total {
            self.note("trailer", bytes.len() - total);
        }
        let proto = header[9];
        if be16(header, 6) & 0x3fff != 0 {
            self.note("ip.proto", proto);
            self.note("payload", hex(&bytes[length..total]));
            return Ok(());
        }
        self.transport(proto, source, destination, &bytes[length..total])
    }

    fn ipv6(&mut self, bytes: &[u8]) -> Step {
        let header = cut(bytes, 0, 40, "ipv6")?;
        let word = u32::from(be16(header, 0)) << 16 | u32::from(be16(header, 2));
        let length = usize::from(be16(header, 4));
        let mut rest = cut(bytes, 40, length, "ipv6 payload")?;
        self.note("ipv6.version", word >> 28);
        self.note("ipv6.class", format!("{:02x}", word >> 20 & 0xff));
        self.note("ipv6.flow", format!("{:05x}", word & 0xf_ffff));
        self.note("ipv6.length", length);
        self.note("ipv6.hop_limit", header[7]);
        let (source, destination) = (v6(header, 8).into(), v6(header, 24).into());
        self.addresses(source, destination);
        if bytes.len() > 40 + length {
            self.note("trailer", bytes.len() - 40 - length);
        }
        let mut next = header[6];
        while matches!(next, 0 | 43 | 44 | 51 | 60) {
            let head = cut(rest, 0, 8, "extension")?;
            let size = match next {
                44 => 8,
                51 => usize::from(head[1]) * 4 + 8,
                _ => usize::from(head[1]) * 8 + 8,
            };
            let extension = cut(rest, 0, size, "extension")?;
            self.note(&format!("ipv6.extension{next}"), format!("{extension:02x?}"));
            if next == 44 && be16(head, 2) & 0xfff9 != 0 {
                self.note("ip.proto", head[0]);
                self.note("payload", hex(&rest[8..]));
                return Ok(());
            }
            next = head[0];
            rest = &rest[size..];
        }
        self.transport(next, source, destination, rest)
    }

    fn addresses(&mut self, source: IpAddr, destination: IpAddr) {
        self.note("ip.source", source);
        self.note("ip.destination", destination);
    }

    fn transport(&mut self, proto: u8, source: IpAddr, destination: IpAddr, bytes: &[u8]) -> Step {
        self.note("ip.proto", proto);
        let sum = match proto {
            1 => internet_checksum(&[bytes]),
            _ => {
                internet_checksum(&[&pseudo_header(source, destination, proto, bytes.len()), bytes])
            }
        };
        match proto {
            6 => self.tcp(bytes, sum),
            17 => self.udp(bytes, sum, destination.is_ipv6()),
            1 | 58 => self.icmp(bytes, sum),
            _ => {
                self.note("payload", hex(bytes));
                Ok(())
            }
        }
    }

    fn tcp(&mut self, bytes: &[u8], sum: u16) -> Step {
        let header = cut(bytes, 0, 20, "tcp")?;
        let options =
            cut(bytes, 20, (usize::from(header[12] >> 4) * 4).saturating_sub(20), "tcp options")?;
        if sum != 0 {
            self.complain(format!("tcp checksum {:04x}", be16(header, 16)));
        }
        let flags: String = "FSRPAUEC"
            .chars()
            .enumerate()
            .filter(|(bit, _)| header[13] & 1 << bit != 0)
            .map(|(_, letter)| letter)
            .collect();
        self.note("tcp.ports", format!("{} > {}", be16(header, 0), be16(header, 2)));
        self.note("tcp.flags", flags);
        self.note("tcp.seq", u32::from_be_bytes(header[4..8].try_into().unwrap()));
        self.note("tcp.ack", u32::from_be_bytes(header[8..12].try_into().unwrap()));
        self.note("tcp.window", be16(header, 14));
        self.note("tcp.checksum", format!("{:04x}", be16(header, 16)));
        self.note("tcp.options", format!("{options:02x?}"));
        self.note("payload", hex(&bytes[20 + options.len()..]));
        Ok(())
    }

    fn udp(&mut self, bytes: &[u8], sum: u16, v6: bool) -> Step {
        let header = cut(bytes, 0, 8, "udp")?;
        let (source, destination) = (be16(header, 0), be16(header, 2));
        self.note("udp.ports", format!("{source} > {destination}"));
        self.note("udp.length", be16(header, 4));
        self.note("udp.checksum", format!("{:04x}", be16(header, 6)));
        if usize::from(be16(header, 4)) != bytes.len() {
            self.complain(format!("udp length {} of {}", be16(header, 4), bytes.len()));
        }
        let tunnel = [source, destination].contains(&TUNNEL_PORT) && self.layer.is_empty();
        match be16(header, 6) {
            0 if v6 && !tunnel => self.complain("udp without checksum over IPv6".into()),
            0 => {}
            _ if sum != 0 => self.complain(format!("udp checksum {:04x}", be16(header, 6))),
            _ => {}
        }
        if tunnel {
            self.geneve(source, &bytes[8..])
        } else {
            self.note("payload", hex(&bytes[8..]));
            Ok(())
        }
    }

    fn geneve(&mut self, source_port: u16, bytes: &[u8]) -> Step {
        let head = cut(bytes, 0, 12, "geneve")?;
        self.note("geneve.version_length", head[0]);
        self.note("geneve.flags", format!("{:02x}", head[1]));
        self.note("geneve.protocol", format!("{:04x}", be16(head, 2)));
        self.note("geneve.vni", format!("{:02x?}", &head[4..8]));
        self.note("geneve.option", format!("{:02x?}", &head[8..12]));
        let body = cut(bytes, 12, 44, "geneve option")?;
        if head[10] != 0x81 {
            for (name, range) in [
                ("version", 0..1),
                ("reserved", 1..4),
                ("seed_tag", 4..12),
                ("nonce", 12..20),
                ("boot_id", 20..36),
                ("heartbeat_age", 36..40),
                ("layout", 40..44),
            ] {
                self.note(&format!("probe.{name}"), format!("{:02x?}", &body[range]));
            }
            return Ok(());
        }
        for (name, range) in [
            ("version", 0..1),
            ("flags", 1..2),
            ("reserved", 2..4),
            ("seed_tag", 4..12),
            ("visited", 30..44),
        ] {
            self.note(&format!("data.{name}"), format!("{:02x?}", &body[range]));
        }
        self.note("data.backend", format!("[{}]:{}", v6(body, 12), be16(body, 28)));
        let inner = &bytes[56..];
        self.tunnel = Some((source_port, inner.to_vec()));
        self.layer = "inner.";
        match be16(head, 2) {
            0x0800 => self.ipv4(inner),
            0x86dd => self.ipv6(inner),
            _ => Ok(()),
        }
    }

    fn icmp(&mut self, bytes: &[u8], sum: u16) -> Step {
        let header = cut(bytes, 0, 8, "icmp")?;
        if sum != 0 {
            self.complain(format!("icmp checksum {:04x}", be16(header, 2)));
        }
        self.note("icmp.type", format!("{}/{}", header[0], header[1]));
        self.note("icmp.checksum", format!("{:04x}", be16(header, 2)));
        self.note("icmp.rest", format!("{:02x?}", &header[4..8]));
        self.note("payload", hex(&bytes[8..]));
        Ok(())
    }
}

fn cut<'b>(bytes: &'b [u8], from: usize, length: usize, what: &str) -> Result<&'b [u8], String> {
    bytes.get(from..from + length).ok_or_else(|| {
        format!("{what} is cut short: {} of {}", bytes.len().saturating_sub(from), length)
    })
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn v4(bytes: &[u8], at: usize) -> Ipv4Addr {
    <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap().into()
}

fn v6(bytes: &[u8], at: usize) -> Ipv6Addr {
    <[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap().into()
}

fn mac(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(":")
}

#[cfg(test)]
mod tests {
    use super::super::Frame;
    use super::*;

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn samples() -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for (a, b) in [("198.51.100.7", "192.0.2.1"), ("2001:db8::7", "2001:db8::1")] {
            let base = Frame::ip(addr(a), addr(b)).payload_length(33);
            frames.push(base.clone().tcp(40_000, 80, "SA").mss(1460).build());
            frames.push(base.clone().udp(40_000, 53).vlan(7).tag(0x88a8, 8).build());
            frames.push(base.clone().icmp(8, 0, [1, 2, 3, 4]).build());
            frames.push(base.clone().extension(0, 2).extension(60, 1).tcp(1, 2, "S").build());
        }
        frames.push(
            Frame::ip(addr("198.51.100.7"), addr("192.0.2.1"))
                .options(&[7, 4, 4, 0])
                .tcp(1, 2, "S")
                .build(),
        );
        frames
    }

    #[test]
    fn what_the_builder_makes_is_right() {
        for frame in samples() {
            check(&frame).unwrap_or_else(|complaint| panic!("{complaint}\n{}", hex(&frame)));
        }
    }

    #[test]
    fn any_wrong_byte_behind_the_addresses_is_found() {
        for frame in samples().iter().filter(|frame| frame[12] == 0x08) {
            for at in 26..frame.len() {
                let mut wrong = frame.clone();
                wrong[at] ^= 0x11;
                assert!(check(&wrong).is_err(), "byte {at}\n{}", hex(&wrong));
            }
        }
    }

    #[test]
    fn a_difference_names_the_field() {
        let frame = Frame::ip(addr("198.51.100.7"), addr("192.0.2.1")).tcp(1, 2, "S");
        let text = difference(&frame.build(), &frame.clone().ttl(63).build()).unwrap();
        assert!(text.contains("ipv4.ttl: 64 / 63"), "{text}");
        assert!(difference(&frame.build(), &frame.build()).is_none());
    }

    /// Bytes from RFC 1071 3: the sum of the example is ddf2.
    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        assert_eq!(
            internet_checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]),
            !0xddf2
        );
    }
}
