//! The rules of the house, checked: which module may import which, how long functions and files may be, words to avoid,
//! and limits that are named once.
//!
//! Exceptions are in `tests/house/`: lists that get shorter, numbers that get smaller. Nothing is added to them to make
//! a test pass.

#![expect(
    clippy::print_stderr,
    reason = "a test says what of its lists can be lowered"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The most lines of a function, and of a file without its tests.
const FUNCTION_LINES_MAX: usize = 80;
const FILE_LINES_MAX: usize = 400;

/// The modules of the crate, lowest first: each imports only from the rows above its own.
const LAYERS: [&[&str]; 14] = [
    &["event", "proto"],
    &["covered", "json", "platform", "pool"],
    &["log", "index"],
    &["partition"],
    &["call", "limits"],
    &["submitter"],
    &["response"],
    &["aggregator"],
    &["listing"],
    &["grpc", "http"],
    &["server", "client"],
    &["config"],
    &["cli"],
    &["simulation", "fuzzing"],
];

/// Crates that only these modules name.
const NAMED_BY: [(&str, &[&str]); 2] = [
    ("sled", &["index"]),
    ("tonic", &["grpc", "client", "server", "cli", "proto"]),
];

/// Modules without cycles of imports among their files.
const WITHOUT_RINGS: [&str; 9] = [
    "client",
    "event",
    "grpc",
    "http",
    "index",
    "json",
    "log",
    "partition",
    "server",
];

/// The start of a row of README's table of limits, or a part of it, and the constant behind it.
const LIMITS: [(&str, &str); 10] = [
    ("| topic, event_id, source |", "NAME_BYTES_MAX"),
    ("| attributes |", "ATTRIBUTES_MAX"),
    ("| a JSON payload |", "JSON_DEPTH_MAX"),
    ("(`--max-event-bytes`)", "EVENT_BYTES_MAX"),
    ("(`--max-request-bytes`)", "REQUEST_EVENTS_MAX"),
    ("(`--max-request-bytes`)", "REQUEST_BYTES_MAX"),
    ("(`--max-topics`)", "TOPICS_MAX"),
    ("(`--max-ingest-bytes`)", "INGEST_BYTES_MAX"),
    ("(`--max-readers`)", "READERS_MAX"),
    ("(`--max-connections`)", "CONNECTIONS_MAX"),
];

/// A source file, without its tests and comments.
struct Source {
    /// Relative to `src/`.
    path: String,
    code: String,
    comments: Vec<String>,
}

impl Source {
    /// The file's module in the crate.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.trim_end_matches(".rs")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below `folder` that end with `extension`, except build products and dependencies.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository") {
            let path = entry.expect("an entry of it").path();
            let name = path.file_name().and_then(|name| name.to_str());
            match name {
                Some("target" | "node_modules" | ".git" | "venv" | "data") | None => {}
                Some(_) if path.is_dir() => folders.push(path),
                Some(name) if name.ends_with(extension) => found.push(path),
                Some(_) => {}
            }
        }
    }
    found.sort();
    found
}

/// The source of the crate, without files that are only for tests.
fn sources() -> Vec<Source> {
    let folder = root().join("src");
    let mut sources = Vec::new();
    for path in files(&folder, ".rs") {
        let text = read(&path);
        let text = text.split("#[cfg(test)]\nmod tests {").next();
        let text = text.unwrap_or_default();
        let (mut code, mut comments) = (String::new(), Vec::new());
        for line in text.lines() {
            let (before, comment) = match line.trim_start().starts_with("//") {
                true => ("", Some(line.trim_start())),
                false => line
                    .split_once(" // ")
                    .map_or((line, None), |(before, comment)| (before, Some(comment))),
            };
            code += before;
            code.push('\n');
            comments.extend(comment.map(str::to_owned));
        }
        let path = path.strip_prefix(&folder).expect("below it");
        let path = path.to_string_lossy().into_owned();
        let is_test = ["tests.rs", "fake.rs", "support.rs"];
        if !is_test.iter().any(|name| path.ends_with(name)) {
            sources.push(Source {
                path,
                code,
                comments,
            });
        }
    }
    assert!(sources.len() > 50, "the source is elsewhere");
    sources
}

/// The names in `code` directly below `prefix`: `a` and `b` of `crate::{a::x, b}`, `c` of `crate::c::x`.
fn named_below(prefix: &str, code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let is_longer = code[..at].ends_with(|before: char| is_word(before) || before == ':');
        if is_longer {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            named.insert(word(rest));
            continue;
        };
        let (mut depth, mut begins) = (1, true);
        for (at, char) in group.char_indices() {
            match char {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => begins = true,
                char if begins && depth == 1 && is_word(char) => {
                    named.insert(word(&group[at..]));
                    begins = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    named
}

fn word(text: &str) -> String {
    text.chars().take_while(|char| is_word(*char)).collect()
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// The lines of a list of exceptions, without comments.
fn allowed(name: &str) -> BTreeSet<String> {
    let list = read(&root().join("tests/house").join(name));
    let lines = list.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// Fails if something found is not on the list `name`. Reports entries no longer needed.
fn hold(name: &str, found: &BTreeSet<String>, rule: &str) {
    let allowed = allowed(name);
    for gone in allowed.difference(found) {
        eprintln!("tests/house/{name}: no longer needed: {gone}");
    }
    let new: Vec<_> = found.difference(&allowed).cloned().collect();
    assert!(new.is_empty(), "{rule}:\n{}", new.join("\n"));
}

/// Fails if something is longer than its number on the list `name`, or than `most`.
fn hold_lengths(name: &str, found: &BTreeMap<String, usize>, most: usize, rule: &str) {
    let allowed: BTreeMap<_, usize> = allowed(name)
        .iter()
        .map(|line| {
            let (what, lines) = line.rsplit_once(' ').expect("a name and a number");
            (what.to_owned(), lines.parse().expect("a number"))
        })
        .collect();
    let mut broken = Vec::new();
    for (what, lines) in found {
        let max = allowed.get(what).copied().unwrap_or(most).max(most);
        if *lines > max {
            broken.push(format!("{what}: {lines} lines; the limit is {max}"));
        }
    }
    for (what, lines) in &allowed {
        if found.get(what).is_none_or(|now| now < lines) {
            eprintln!("tests/house/{name}: can be lowered: {what} {lines}");
        }
    }
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn imports_point_one_way() {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut found = BTreeSet::new();
    for source in sources() {
        let module = source.module();
        let Some(own) = layer(module) else {
            assert!(
                ["lib", "main"].contains(&module),
                "{module} has no place in LAYERS"
            );
            continue;
        };
        if source.path.ends_with("fuzzing.rs") {
            continue;
        }
        for named in named_below("crate::", &source.code) {
            if named != module && layer(&named).is_some_and(|other| other >= own) {
                found.insert(format!("{} imports {named}", source.path));
            }
        }
    }
    hold("imports.txt", &found, "an import that points the other way");
}

#[test]
fn edges_do_not_reach_below_the_partition() {
    let mut found = BTreeSet::new();
    for source in sources() {
        if !["grpc", "http", "listing"].contains(&source.module()) {
            continue;
        }
        if source.path.ends_with("fuzzing.rs") {
            continue;
        }
        for named in named_below("crate::", &source.code) {
            if ["log", "index", "platform"].contains(&&*named) {
                found.insert(format!("{} imports {named}", source.path));
            }
        }
    }
    hold(
        "edges.txt",
        &found,
        "an edge that names what is below the partition",
    );
}

#[test]
fn a_crate_is_named_where_it_belongs() {
    let mut found = BTreeSet::new();
    for source in sources() {
        for (name, modules) in NAMED_BY {
            let is_named = source.code.contains(&format!("{name}::"));
            if is_named && !modules.contains(&source.module()) {
                found.insert(format!("{} names {name}", source.path));
            }
        }
    }
    hold(
        "crates.txt",
        &found,
        "a crate that is named where it does not belong",
    );
}

#[test]
fn files_of_a_module_import_in_no_ring() {
    let mut found = BTreeSet::new();
    for module in WITHOUT_RINGS {
        let mut imports = BTreeMap::new();
        for source in sources() {
            let below = source.path.strip_prefix(&format!("{module}/"));
            let Some(file) = below.filter(|file| !file.contains('/')) else {
                continue;
            };
            let file = file.trim_end_matches(".rs").to_owned();
            if file != "mod" && file != "fuzzing" {
                let mut named = named_below("super::", &source.code);
                named.extend(named_below(&format!("crate::{module}::"), &source.code));
                imports.insert(file, named);
            }
        }
        for file in imports.keys() {
            let mut reached = BTreeSet::new();
            let mut next = vec![file];
            while let Some(at) = next.pop() {
                let Some(named) = imports.get(at) else {
                    continue;
                };
                next.extend(named.iter().filter(|named| reached.insert(*named)));
            }
            if reached.contains(file) {
                found.insert(format!("{module}/{file}.rs"));
            }
        }
    }
    hold(
        "rings.txt",
        &found,
        "a file that imports itself through others",
    );
}

#[test]
fn functions_are_short() {
    let mut found = BTreeMap::new();
    for source in sources() {
        // rustfmt puts the closing brace of a function where its first line begins.
        let lines: Vec<_> = source.code.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let Some((_, name)) = line.split_once("fn ") else {
                continue;
            };
            let head: Vec<_> = line
                .split("fn ")
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .collect();
            let is_function = head.iter().all(|word| {
                word.starts_with("pub")
                    || ["async", "const", "unsafe"].contains(word)
                    || word.ends_with(')')
            });
            if !is_function || name.starts_with('(') {
                continue;
            }
            let closes = |line: &&str| line.trim_end() == format!("{}}}", " ".repeat(indent));
            let Some(rest) = lines[at..].iter().position(closes) else {
                continue;
            };
            let longest = found.entry(format!("{} {}", source.path, word(name)));
            let longest = longest.or_insert(0);
            *longest = rest.max(*longest) + 1;
        }
    }
    assert!(found.len() > 500, "functions look different now");
    found.retain(|_, lines| *lines > FUNCTION_LINES_MAX);
    hold_lengths(
        "functions.txt",
        &found,
        FUNCTION_LINES_MAX,
        "a function is too long",
    );
}

#[test]
fn files_are_short() {
    let mut found = BTreeMap::new();
    for source in sources() {
        found.insert(source.path, source.code.lines().count());
    }
    found.retain(|_, lines| *lines > FILE_LINES_MAX);
    hold_lengths(
        "files.txt",
        &found,
        FILE_LINES_MAX,
        "a file is too long without its tests",
    );
}

#[test]
fn words_we_do_not_use_get_fewer() {
    let mut texts: Vec<String> = sources()
        .into_iter()
        .flat_map(|source| source.comments)
        .collect();
    for path in files(root(), ".md") {
        texts.push(read(&path));
    }
    for path in files(&root().join("proto"), ".proto") {
        texts.push(read(&path));
    }
    let text = format!(" {} ", texts.join(" ").to_lowercase());
    let text: String = text
        .split(|char| !is_word(char))
        .collect::<Vec<_>>()
        .join(" ");
    let mut broken = Vec::new();
    for line in allowed("words.txt") {
        let (phrase, budget) = line.rsplit_once(' ').expect("a phrase and a number");
        let budget: usize = budget.parse().expect("a number");
        let count = text.matches(&format!(" {phrase} ")).count();
        if count > budget {
            broken.push(format!("\"{phrase}\" {count} times; {budget} are left"));
        }
        if count < budget {
            eprintln!("tests/house/words.txt: can be lowered: {phrase} {count}");
        }
    }
    assert!(broken.is_empty(), "say it plainly:\n{}", broken.join("\n"));
}

/// The value of `4 * 1024 * EVENT_BYTES_MAX`, say, with its names resolved.
fn value(expression: &str, constants: &BTreeMap<String, Vec<String>>) -> Option<u64> {
    let factors = expression.split('*').map(str::trim);
    factors
        .map(|factor| match constants.get(factor) {
            Some(of) => value(of.first()?, constants),
            None => factor.replace('_', "").parse().ok(),
        })
        .product()
}

/// The numbers of a row: `4 MiB (...), 16,384 events` has 4194304 and 16384.
fn numbers(row: &str) -> Vec<u64> {
    let words: Vec<_> = row.split_whitespace().collect();
    let mut numbers = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let digits = word.trim_matches(|char: char| !char.is_ascii_digit());
        if let Ok(number) = digits.replace(',', "").parse::<u64>() {
            let unit = words.get(at + 1).map(|unit| unit.trim_end_matches(','));
            numbers.push(match unit {
                Some("KiB") => number * 1024,
                Some("MiB") => number * 1024 * 1024,
                Some(_) | None => number,
            });
        }
    }
    numbers
}

#[test]
fn a_limit_is_named_once_and_documented() {
    let mut constants: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources() {
        // These have small limits on purpose, limits of their own, or a lower one for an endpoint.
        let has_own = ["simulation", "cli"].contains(&source.module());
        if has_own || source.path.ends_with("fuzzing.rs") || source.path == "http/stats.rs" {
            continue;
        }
        for line in source.code.lines() {
            if let Some((_, constant)) = line.split_once("const ")
                && let Some((name, value)) = constant.split_once(':')
                && let Some((_, value)) = value.split_once(" = ")
            {
                let value = value.trim_end_matches(';').to_owned();
                constants.entry(name.to_owned()).or_default().push(value);
            }
        }
    }
    let readme = read(&root().join("README.md"));
    for (row, name) in LIMITS {
        let line = readme.lines().find(|line| line.contains(row));
        let line = line.unwrap_or_else(|| panic!("README has no limit with {row}"));
        let documented = numbers(line);
        let values = constants.get(name).into_iter().flatten();
        let named = values.filter(|value| {
            self::value(value, &constants).is_some_and(|value| documented.contains(&value))
        });
        assert_eq!(named.count(), 1, "{name} in the source, of: {line}");
    }
}

/// docs/reliability.md names the bounds of each endpoint by constants and options.
#[test]
fn bounds_in_the_docs_are_in_the_source() {
    let page = read(&root().join("docs/reliability.md"));
    let sources = sources();
    let has = |text: &str| sources.iter().any(|source| source.code.contains(text));
    let mut named = 0;
    for line in page.lines().filter(|line| line.starts_with('|')) {
        // Every second part is between backticks.
        for name in line.split('`').skip(1).step_by(2) {
            let is_constant = name.contains('_')
                && name
                    .chars()
                    .all(|char| char.is_ascii_uppercase() || char == '_');
            if is_constant {
                named += 1;
                assert!(
                    has(&format!("const {name}:")),
                    "{name}: no such limit: {line}"
                );
            }
        }
    }
    assert!(named > 10, "the table of bounds is elsewhere");
}

/// Whoever follows a page to a file finds it.
#[test]
fn paths_in_the_docs_exist() {
    const PAGES: [&str; 6] = [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/errors.md",
        "docs/performance.md",
        "docs/reliability.md",
    ];
    const FOLDERS: [&str; 9] = [
        "src/", "tests/", "docs/", "proto/", "clients/", "mutants/", "bench/", "torture/",
        "harness/",
    ];
    let mut named = 0;
    for page in PAGES {
        // Every second part is between backticks.
        for path in read(&root().join(page)).split('`').skip(1).step_by(2) {
            let is_path = FOLDERS.iter().any(|folder| path.starts_with(folder))
                && !path.contains([' ', '*', '<', '{', ':', ',']);
            if is_path {
                named += 1;
                assert!(root().join(path).exists(), "{page}: there is no {path}");
            }
        }
    }
    assert!(named > 30, "the pages name their files in another way");
}

#[test]
fn compilers_agree() {
    let version = |text: &str, before: &str| -> Vec<u32> {
        let (_, rest) = text
            .split_once(before)
            .unwrap_or_else(|| panic!("no {before}"));
        let version: String = rest
            .chars()
            .take_while(|char| char.is_ascii_digit() || *char == '.')
            .collect();
        version
            .split('.')
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    let oldest = version(&read(&root().join("Cargo.toml")), "rust-version = \"");
    let image = version(&read(&root().join("Dockerfile")), "FROM rust:");
    assert!(
        image >= oldest,
        "the image has {image:?}, Cargo.toml asks for {oldest:?}"
    );
    let readme = version(&read(&root().join("README.md")), "Requires Rust ");
    assert_eq!(
        readme, oldest,
        "README says another version than Cargo.toml"
    );
    let toolchain = read(&root().join("rust-toolchain.toml"));
    assert!(
        toolchain.contains("channel = \"stable\""),
        "the newest stable has all versions' features"
    );
}

#[test]
fn names_are_found_in_groups() {
    let code = "use crate::{a::{x, y}, b, Z}; fn f() { crate::c::g(); xcrate::d(); }";
    let named: Vec<_> = named_below("crate::", code).into_iter().collect();
    assert_eq!(named, ["Z", "a", "b", "c"]);
}
