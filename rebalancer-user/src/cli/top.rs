//! `rebalancer top`: endpoints by Service, live.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use jiff::Timestamp;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    text::Text,
};

use super::{KernelArgs, print, running};
use crate::{api::Services, render};

/// How often the agent is asked.
const EVERY: Duration = Duration::from_secs(1);
/// Of a picture that no terminal shows.
const WIDTH: usize = 100;

/// Show the endpoints of each Service live: connections, rates, moves in flight.
///
/// Asks the running agent once a second and shows its last pass; rates are those between two passes.
/// Endpoints without known names are shown by port. `q` quits. Exit code 5 if no agent is running, 4
/// if access is denied.
#[derive(Args)]
pub(super) struct Top {
    /// Print one snapshot as text and exit.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    kernel: KernelArgs,
}

impl Top {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let now = running::services(&self.kernel)?;
        if self.once {
            return print(|out| once(out, &now));
        }
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            bail!("not a terminal\n  remedy: print one snapshot as text with --once");
        }
        // From here on whatever happens, a panic too, the terminal is given back as it was.
        let mut terminal = ratatui::try_init().context("taking the terminal")?;
        let ended = self.live(&mut terminal, now);
        ratatui::try_restore().context("giving the terminal back")?;
        ended
    }

    fn live(&self, terminal: &mut DefaultTerminal, first: Services) -> anyhow::Result<()> {
        let mut seen = Seen {
            before: None,
            now: first,
        };
        let mut lines_above = 0;
        let mut ask_at = Instant::now() + EVERY;
        loop {
            seen.draw(terminal, &mut lines_above)?;
            if event::poll(ask_at.saturating_duration_since(Instant::now()))? {
                match event::read()? {
                    Event::Key(key) if is_end(key) => return Ok(()),
                    Event::Key(key) => scroll(key, &mut lines_above),
                    _ => {}
                }
                continue;
            }
            ask_at = Instant::now() + EVERY;
            seen.take(running::services(&self.kernel)?);
        }
    }
}

/// The last pass that was seen, and the one before it.
struct Seen {
    before: Option<Services>,
    now: Services,
}

impl Seen {
    fn take(&mut self, next: Services) {
        let last = std::mem::replace(&mut self.now, next);
        if last.at != self.now.at {
            self.before = Some(last);
        }
    }

    /// No further down than there is something to see.
    fn draw(&self, terminal: &mut DefaultTerminal, lines_above: &mut u16) -> anyhow::Result<()> {
        terminal
            .draw(|frame| {
                let area = frame.area();
                let width = usize::from(area.width);
                let lines = render::top(&self.now, self.before.as_ref(), width, Timestamp::now());
                let last = u16::try_from(lines.len().saturating_sub(1)).unwrap_or(u16::MAX);
                *lines_above = last.min(*lines_above);
                let shown: Vec<_> = lines.into_iter().skip(usize::from(*lines_above)).collect();
                frame.render_widget(Text::from(shown), area);
            })
            .context("writing to the terminal")?;
        Ok(())
    }
}

fn is_end(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c') => control,
            _ => false,
        }
}

fn scroll(key: KeyEvent, lines_above: &mut u16) {
    *lines_above = match key.code {
        KeyCode::Down | KeyCode::Char('j') => lines_above.saturating_add(1),
        KeyCode::Up | KeyCode::Char('k') => lines_above.saturating_sub(1),
        KeyCode::Home => 0,
        _ => *lines_above,
    };
}

fn once(out: &mut impl io::Write, now: &Services) -> io::Result<()> {
    for line in render::top(now, None, WIDTH, Timestamp::now()) {
        writeln!(out, "{}", line.to_string().trim_end())?;
    }
    Ok(())
}
