//! Writes the figures into the docs.

use std::fs;

use crate::{Result, args::PublishArgs, plot::plot, report::Report};

/// This program writes the text between these lines of the page; the rest is written by hand.
const BEGIN: &str = "<!-- figures: written by `oncelog-bench publish` -->\n";
const END: &str = "<!-- end of figures -->\n";

pub fn publish(args: &PublishArgs) -> Result<()> {
    let reports = args.reports.iter().map(|path| Report::read(path));
    let reports: Vec<Report> = reports.collect::<Result<_>>()?;
    let page = args.docs.join("performance.md");
    let text = fs::read_to_string(&page).map_err(|error| format!("{}: {error}", page.display()))?;
    let text = between(&text, &reports)
        .ok_or_else(|| format!("{} does not have the lines {BEGIN}{END}", page.display()))?;
    fs::write(page, text)?;
    Ok(fs::write(
        args.docs.join("performance.svg"),
        plot(&reports),
    )?)
}

fn between(text: &str, reports: &[Report]) -> Option<String> {
    let (head, rest) = text.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    let figures: Vec<String> = reports
        .iter()
        .map(|report| format!("### {}\n\n{report}", report.title()))
        .collect();
    Some(format!(
        "{head}{BEGIN}\n{}\n{END}{tail}",
        figures.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_figures_are_written() {
        let page = format!("by hand\n{BEGIN}old\n{END}more\n");
        let written = between(&page, &[]).expect("works");
        assert_eq!(written, format!("by hand\n{BEGIN}\n\n{END}more\n"));
        assert_eq!(between(&written, &[]).expect("works"), written);
        assert!(between("no such lines", &[]).is_none());
    }
}
