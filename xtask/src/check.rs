//! `check`: who may know whom, as a table of words that must not stand in certain files.
//!
//! It reads code line by line, without comments and without the unit tests at a file's end. That is no
//! parser, but enough to catch a dependency that slips in; rustc and clippy do the rest.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// Words that must not stand in the code of some files.
struct Rule {
    name: &'static str,
    /// Path prefixes that it holds for.
    within: &'static [&'static str],
    /// Path prefixes that it does not hold for.
    except: &'static [&'static str],
    /// Whole words; `a::b` matches where both parts stand so.
    words: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        name: "lb-common does no I/O and knows no other part",
        within: &["lb-common/src/"],
        except: &[],
        words: &["std::fs", "std::net", "std::io", "std::time", "weir", "lb_ebpf", "tokio"],
    },
    Rule {
        name: "only lb-common's map_types macro and the dataplane touch aya",
        within: &["lb-common/src/", "lb-userspace/src/"],
        except: &["lb-common/src/lib.rs", "lb-userspace/src/dataplane"],
        words: &["aya"],
    },
    Rule {
        name: "only sources and the report touch kube",
        within: &["lb-common/src/", "lb-userspace/src/"],
        except: &["lb-userspace/src/sources", "lb-userspace/src/report"],
        words: &["kube", "k8s_openapi"],
    },
    Rule {
        name: "model and plan are pure: no tasks, sockets, files or clock",
        within: &["lb-userspace/src/model", "lb-userspace/src/plan"],
        except: &[],
        words: &[
            "tokio",
            "nix",
            "libc",
            "socket2",
            "rtnetlink",
            "fs",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "SystemTime",
            "Instant::now",
        ],
    },
    Rule {
        name: "the plan neither logs nor depends on hash-map order",
        within: &["lb-userspace/src/plan"],
        except: &[],
        words: &["tracing", "println", "HashMap", "HashSet"],
    },
    Rule {
        name: "nothing knows the tests",
        within: &["lb-common/", "lb-ebpf/", "lb-userspace/"],
        except: &[],
        words: &["lb_tests", "lb-tests"],
    },
    Rule {
        name: "unsafe in the BPF programs stands in frame.rs, maps.rs and socket.rs only",
        within: &["lb-ebpf/src/"],
        except: &["lb-ebpf/src/frame.rs", "lb-ebpf/src/maps.rs", "lb-ebpf/src/socket.rs"],
        words: &["unsafe"],
    },
    Rule {
        name: "unsafe in the agent stands with maps, sockets, the heap and the preflight's questions to the kernel",
        within: &["lb-userspace/src/"],
        except: &[
            "lb-userspace/src/announce",
            "lb-userspace/src/cli/check",
            "lb-userspace/src/dataplane",
            "lb-userspace/src/health",
            "lb-userspace/src/heap.rs",
            "lb-userspace/src/membership",
            "lb-userspace/src/netlink",
        ],
        words: &["unsafe"],
    },
    Rule {
        name: "the packet builder shares no code with what it checks",
        within: &["tests/src/packet"],
        except: &[],
        words: &["lb_common::wire", "lb_common::checksum"],
    },
];

/// A test file whose name starts otherwise belongs to no layer of `cargo xtask test` and would never run.
const TEST_PREFIXES: &[&str] = &["packet", "netns", "kube"];

/// Checks all files of the tree; prints every breach, and fails if there is one.
pub fn run(workspace: &Workspace) -> Result<()> {
    let mut breaches = Vec::new();
    let mut files = 0;
    for dir in ["lb-common", "lb-ebpf", "lb-userspace", "tests"] {
        visit(&workspace.root, &workspace.root.join(dir), &mut |path, text| {
            files += 1;
            breaches.extend(check_file(path, text));
        })?;
    }
    for breach in &breaches {
        println!("{breach}");
    }
    if !breaches.is_empty() {
        bail!("{} breaches of the layering rules", breaches.len());
    }
    println!("{} layering rules hold in {files} files", RULES.len() + 1);
    Ok(())
}

/// The breaches in one file, whose path is relative to the tree's root.
fn check_file(path: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    if let Some(name) = path.strip_prefix("tests/tests/")
        && !TEST_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    {
        breaches.push(format!(
            "{path}: no test layer runs it; start its name with one of {TEST_PREFIXES:?}"
        ));
    }
    // Unit tests in a file of their own may do what those behind the code may.
    if path.ends_with("tests.rs") && !path.starts_with("tests/") {
        return breaches;
    }
    let starts_with_any =
        |prefixes: &[&str]| prefixes.iter().any(|prefix| path.starts_with(prefix));
    for rule in
        RULES.iter().filter(|rule| starts_with_any(rule.within) && !starts_with_any(rule.except))
    {
        for (number, line) in code_lines(text) {
            for word in rule.words.iter().filter(|word| has_word(line, word)) {
                breaches.push(format!("{path}:{number}: `{word}`: {}", rule.name));
            }
        }
    }
    breaches
}

/// Numbered lines, without comments and up to the first module of unit tests.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_tests = |(line, next): (&str, &str)| {
        line.trim_start().starts_with("#[cfg(test)]") && next.trim_start().starts_with("mod ")
    };
    let next_lines = text.lines().skip(1).chain([""]);
    text.lines()
        .zip(next_lines)
        .take_while(move |&pair| !is_tests(pair))
        .enumerate()
        .map(|(index, (line, _))| (index + 1, line.split("//").next().unwrap_or(line)))
}

/// Whether `word` stands in `line` as a whole word. An attribute like `#[unsafe(no_mangle)]` runs no
/// unsafe code, so it does not count.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        !before.ends_with(is_part) && !after.starts_with(is_part) && !before.ends_with("#[")
    })
}

fn visit(root: &Path, dir: &Path, each: &mut impl FnMut(&str, &str)) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.is_dir() && !path.ends_with("target") {
            visit(root, &path, each)?;
        } else if path.extension().is_some_and(|kind| kind == "rs") || path.ends_with("Cargo.toml")
        {
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let name = path.strip_prefix(root).unwrap_or(&path);
            // The tests' own manifest is the one place that names them.
            if name != Path::new("tests/Cargo.toml") {
                each(&name.to_string_lossy(), &text);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_catches_a_breach_and_spares_what_is_allowed() {
        let mut caught = Vec::new();
        for (bad, good, line) in [
            ("lb-common/src/net.rs", "lb-userspace/src/agent.rs", "use std::net::UdpSocket;"),
            ("lb-userspace/src/agent.rs", "lb-userspace/src/dataplane/load.rs", "use aya::Ebpf;"),
            (
                "lb-userspace/src/plan/diff.rs",
                "lb-userspace/src/sources/kubernetes.rs",
                "use kube::Api;",
            ),
            (
                "lb-userspace/src/model/node.rs",
                "lb-userspace/src/agent.rs",
                "let now = Instant::now();",
            ),
            (
                "lb-userspace/src/plan/owners.rs",
                "lb-userspace/src/health/run.rs",
                "let m = HashMap::new();",
            ),
            ("lb-userspace/Cargo.toml", "tests/src/lib.rs", "lb-tests = { path = \"../tests\" }"),
            ("lb-ebpf/src/forward.rs", "lb-ebpf/src/frame.rs", "    unsafe { *p }"),
            (
                "lb-userspace/src/cli/mod.rs",
                "lb-userspace/src/dataplane/mmap.rs",
                "    unsafe { *p }",
            ),
            ("tests/src/packet/build.rs", "tests/src/rig.rs", "use lb_common::wire::Ipv4;"),
            ("tests/tests/other.rs", "tests/tests/packet_forward.rs", ""),
        ] {
            let breaches = check_file(bad, line);
            assert_eq!(breaches.len(), 1, "{bad}: {line}");
            caught.extend(breaches);
            assert_eq!(check_file(good, line), [""; 0], "{good}: {line}");
        }
        for rule in RULES {
            let is_tried = caught.iter().any(|breach| breach.ends_with(rule.name));
            assert!(is_tried, "no case above breaks the rule: {}", rule.name);
        }
    }

    #[test]
    fn breaches_carry_file_and_line() {
        let text = "//! Head.\n\nuse tokio::net;\n";
        let breach = &check_file("lb-userspace/src/plan/mod.rs", text)[0];
        assert!(breach.starts_with("lb-userspace/src/plan/mod.rs:3: `tokio`"), "{breach}");
    }

    #[test]
    fn comments_unit_tests_and_longer_words_do_not_count() {
        let text = "// tokio\nlet a = prefs; // fs\nlet tokio_like = 1;\n\
                    #[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert_eq!(check_file("lb-userspace/src/plan/mod.rs", text), [""; 0]);
    }

    #[test]
    fn code_after_a_lone_test_attribute_still_counts() {
        let text = "#[cfg(test)]\nextern crate std;\nuse tokio::net;\n";
        assert_eq!(check_file("lb-userspace/src/plan/mod.rs", text).len(), 1);
    }

    #[test]
    fn unsafe_attributes_are_no_unsafe_code() {
        assert_eq!(check_file("lb-ebpf/src/main.rs", "#[unsafe(no_mangle)]"), [""; 0]);
    }
}
