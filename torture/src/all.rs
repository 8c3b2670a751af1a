//! The long form: every command in turn, with their figures written into the docs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command as Process,
    time::Instant,
};

use clap::{Args, Parser as _};
use oncelog_harness::{
    machine::{self, Machine},
    number::grouped,
};

use crate::{Cli, Result};

const PAGE: &str = "reliability.md";
const PLOT: &str = "soak.svg";
/// This program writes the text between these lines of the page; the rest is written by hand.
const BEGIN: &str = "<!-- figures: written by `oncelog-torture all` -->\n";
const END: &str = "<!-- end of figures -->\n";

/// The parts of the time for the simulation and the network; crashes get the rest.
const SIMULATE_SHARE: u64 = 6;
const NETWORK_SHARE: u64 = 5;

/// The arguments of `all`.
#[derive(Args, Debug)]
pub struct AllArgs {
    /// How many minutes, without the soak
    #[arg(long, value_name = "COUNT", default_value_t = 40, value_parser = clap::value_parser!(u64).range(6..))]
    minutes: u64,
    /// Unique events of the soak
    #[arg(long, value_name = "COUNT", default_value_t = 50_000_000)]
    unique: u64,
    /// Write the figures into reliability.md in this folder, and the plot of the soak beside it
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
}

/// Runs everything, and returns the figures.
pub async fn run(args: &AllArgs) -> Result<String> {
    let began = Instant::now();
    // Before the plot is written into the docs.
    let commit = commit();
    let plot = args
        .docs
        .as_deref()
        .unwrap_or(Path::new("target"))
        .join(PLOT);
    let simulate = args.minutes / SIMULATE_SHARE;
    let network = args.minutes / NETWORK_SHARE;
    let crash = args.minutes - simulate - network;
    let parts = [
        ("Simulation", format!("simulate --minutes {simulate}")),
        ("Lies of the disk", "simulate --lie all".to_owned()),
        ("Network", format!("network --minutes {network} --seed 1")),
        (
            "The real program",
            format!("crash --minutes {crash} --seed 1"),
        ),
        (
            "Soak",
            format!("soak --unique {} --plot {}", args.unique, plot.display()),
        ),
    ];
    let mut figures = String::new();
    for (title, command) in parts {
        println!("\n== oncelog-torture {command}");
        let words = ["oncelog-torture"].into_iter().chain(command.split(' '));
        let part = crate::run(Cli::try_parse_from(words)?.command).await?;
        let part = with_separators(&part);
        figures += &format!("\n### {title}\n\n```sh\noncelog-torture {command}\n```\n\n{part}");
    }
    let Machine {
        cpu,
        cores,
        memory_bytes,
        disk,
        kernel,
    } = Machine::here(Path::new("."))?;
    let figures = format!(
        "\n{}, {commit}: `oncelog-torture all --minutes {}`, {:.0} minutes in all, without a promise broken. {cpu}, {cores} cores, \
         {:.0} GiB of memory, {disk}, {kernel}.\n{figures}\n",
        machine::today(),
        args.minutes,
        began.elapsed().as_secs_f64() / 60.0,
        memory_bytes as f64 / f64::from(1 << 30),
    );
    println!("{figures}");
    if let Some(docs) = &args.docs {
        let page = docs.join(PAGE);
        let text =
            fs::read_to_string(&page).map_err(|error| format!("{}: {error}", page.display()))?;
        let text = between(&text, &figures)
            .ok_or_else(|| format!("{} does not have the lines {BEGIN}{END}", page.display()))?;
        fs::write(page, text)?;
    }
    Ok(figures)
}

/// The commit under test.
fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Process::new("git").args(args).output().ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| said.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "no commit".to_owned();
    };
    match git(&["status", "--porcelain"]).is_some_and(|changes| changes.is_empty()) {
        true => format!("commit {commit}"),
        false => format!("commit {commit} and changes"),
    }
}

fn between(text: &str, figures: &str) -> Option<String> {
    let (head, rest) = text.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}{figures}{END}{tail}"))
}

/// The text with separators in numbers of five digits and more.
fn with_separators(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|char: char| char.is_ascii_digit()) {
        let (before, number) = rest.split_at(at);
        let end = number.find(|char: char| !char.is_ascii_digit());
        let (digits, after) = number.split_at(end.unwrap_or(number.len()));
        written += before;
        match digits.len() {
            ..5 => written += digits,
            5.. => written += &grouped(digits),
        }
        rest = after;
    }
    written + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_have_separators() {
        assert_eq!(
            with_separators("of 50000000 (29352 a minute), 1413 failed, 123456"),
            "of 50,000,000 (29,352 a minute), 1413 failed, 123,456"
        );
    }

    #[test]
    fn only_the_figures_are_written() {
        let page = format!("by hand\n{BEGIN}old\n{END}more\n");
        let written = between(&page, "\nnew\n").expect("has the lines");
        assert_eq!(written, format!("by hand\n{BEGIN}\nnew\n{END}more\n"));
        assert_eq!(between("no such lines", ""), None);
    }
}
