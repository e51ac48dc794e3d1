//! One picture per scenario: the hottest endpoint relative to the mean, and the moves started, over
//! time; the mean of all runs.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::{Played, simulation::scenario::Scenario};

/// The most points of a line.
const POINTS: usize = 400;

const COLORS: [RGBColor; 4] = [
    RGBColor(150, 150, 150),
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(213, 94, 0),
];

type Line = Vec<(f64, f64)>;

pub(crate) fn draw(folder: &Path, scenario: &Scenario, played: &[Played<'_>]) -> Result<()> {
    let path = folder.join(format!("{}.svg", scenario.name));
    let root = SVGBackend::new(&path, (900, 640)).into_drawing_area();
    let failed = |error: &dyn std::error::Error| anyhow!("{}: {error}", path.display());
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let (above, below) = root.split_vertically(320);
    let lines = |of: fn(&Played<'_>) -> Line| played.iter().map(of).collect::<Vec<_>>();
    let names: Vec<&str> = played.iter().map(|p| p.strategy.name()).collect();
    let title = format!("{}: {}", scenario.name, scenario.about);
    chart(
        &above,
        &title,
        "hottest endpoint / mean",
        &names,
        &lines(hottest),
    )
    .map_err(|e| failed(&e))?;
    chart(&below, "", "moves", &names, &lines(moves)).map_err(|e| failed(&e))?;
    root.present().map_err(|e| failed(&e))
}

fn chart<'a>(
    area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    title: &str,
    unit: &str,
    names: &[&str],
    lines: &[Line],
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    let all = || lines.iter().flatten();
    let most = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(1.0, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..most(|p| p.0), 0.0..most(|p| p.1))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("seconds")
        .y_desc(unit)
        .draw()?;
    for ((line, color), name) in lines.iter().zip(COLORS).zip(names) {
        chart
            .draw_series(LineSeries::new(line.iter().copied(), color.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()
}

fn hottest(played: &Played<'_>) -> Line {
    let mean = |index: usize| {
        let at = played.runs[0].samples[index].at.as_secs_f64();
        let sum: f64 = played
            .runs
            .iter()
            .map(|run| run.samples[index].hottest)
            .sum();
        (at, sum / played.runs.len() as f64)
    };
    points(played).map(mean).collect()
}

fn moves(played: &Played<'_>) -> Line {
    let begun = |index: usize| {
        let at = played.runs[0].samples[index].at;
        let until = |run: &crate::Run| {
            run.starts
                .partition_point(|start| start.after_start() <= at)
        };
        let sum: usize = played.runs.iter().map(until).sum();
        (at.as_secs_f64(), sum as f64 / played.runs.len() as f64)
    };
    points(played).map(begun).collect()
}

fn points(played: &Played<'_>) -> impl Iterator<Item = usize> {
    let all = played.runs[0].samples.len();
    (0..all).step_by(all.div_ceil(POINTS).max(1))
}
