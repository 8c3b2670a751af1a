//! The functions behind the fuzz targets in `fuzz/`.
//!
//! A function takes arbitrary bytes, and panics if their reader breaks a promise: accepted bytes equal what
//! would be written again, accepted values are valid, refusals are short, and nothing panics. The functions are
//! next to the code they test; `cargo test` runs them over the inputs in `fuzz/corpus`.

pub use crate::{
    cli::fuzzing::{cli_lines, config},
    event::fuzzing::{event, json_text},
    grpc::fuzzing::{grpc_publish, grpc_queries},
    http::fuzzing::{http_json, http_ndjson, http_query},
    index::fuzzing::{filter, manifest, positions, run},
    log::fuzzing::{batch, segment},
    partition::fuzzing::{counters, cursor},
};

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use super::*;
    use crate::{cli, event, grpc, http, index, log, partition};

    struct Target {
        name: &'static str,
        run: fn(&[u8]),
        seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
    }

    macro_rules! targets {
        ($($name:ident: $module:ident::$seeds:ident,)*) => {
            [$(Target {
                name: stringify!($name),
                run: $name,
                seeds: $module::fuzzing::seeds::$seeds,
            }),*]
        };
    }

    const TARGETS: [Target; 17] = targets! {
        batch: log::batches,
        cli_lines: cli::lines,
        config: cli::configs,
        counters: partition::counters,
        cursor: partition::cursors,
        event: event::events,
        filter: index::filters,
        grpc_publish: grpc::publish,
        grpc_queries: grpc::queries,
        http_json: http::bodies,
        http_ndjson: http::lines,
        http_query: http::queries,
        json_text: event::texts,
        manifest: index::manifests,
        positions: index::positions,
        run: index::runs,
        segment: log::segments,
    };

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names
            .map(|name| name.into_string().expect("a name"))
            .collect();
        names.sort();
        names
    }

    /// A finding stays fixed.
    #[test]
    fn the_corpus_holds() {
        let expected: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        assert_eq!(names(&folder().join("corpus")), expected);
        for target in &TARGETS {
            let corpus = folder().join("corpus").join(target.name);
            let inputs = names(&corpus);
            assert!(!inputs.is_empty(), "{}", target.name);
            for input in inputs {
                let path = corpus.join(input);
                let data = fs::read(&path).expect("read");
                let held = std::panic::catch_unwind(|| (target.run)(&data));
                assert!(held.is_ok(), "{}", path.display());
            }
        }
    }

    #[test]
    fn every_target_is_fuzzed() {
        let expected: Vec<_> = TARGETS
            .iter()
            .map(|target| format!("{}.rs", target.name))
            .collect();
        assert_eq!(names(&folder().join("fuzz_targets")), expected);
    }

    /// Inputs that are valid today are in the corpus: the seeds of fuzzing keep up with the formats.
    #[test]
    fn the_seeds_are_in_the_corpus() {
        for target in &TARGETS {
            for (name, seed) in (target.seeds)() {
                let path = folder()
                    .join("corpus")
                    .join(target.name)
                    .join(format!("seed-{name}"));
                let found = fs::read(&path).unwrap_or_default();
                assert!(
                    found == seed,
                    "{} is out of date: cargo test --lib write_the_seeds -- --ignored",
                    path.display()
                );
            }
        }
    }

    #[test]
    #[ignore = "writes into fuzz/corpus, when a format has changed"]
    fn write_the_seeds() {
        for target in &TARGETS {
            let corpus = folder().join("corpus").join(target.name);
            fs::create_dir_all(&corpus).expect("created");
            for (name, seed) in (target.seeds)() {
                fs::write(corpus.join(format!("seed-{name}")), seed).expect("written");
            }
        }
    }
}
