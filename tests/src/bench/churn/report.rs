//! The table: one row for each kind of event, weir beside the control.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Options,
    event::{Kind, Record},
};

/// `weir.bench-churn/v1`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: &'static str,
    pub connections: usize,
    pub flows: usize,
    pub weir: Vec<Row>,
    /// Maglev with a table of flows in each forwarder.
    pub control: Option<Vec<Row>>,
    pub events: Vec<Record>,
    /// Nothing broke at weir, and something at the control if it was asked.
    pub ok: bool,
}

/// All events of one kind.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub kind: String,
    pub events: usize,
    /// Conversations that went on during them, of all events together.
    pub connections: usize,
    pub flows: usize,
    pub broken_connections: usize,
    pub broken_flows: usize,
    pub failures: BTreeMap<String, usize>,
    pub born: usize,
    pub unborn: usize,
    pub longest_ms: u64,
    pub resent: u64,
}

impl Report {
    pub fn new(options: &Options, weir: &[Record], control: Option<&[Record]>) -> Self {
        let (weir_rows, control) = (rows(weir), control.map(rows));
        let lost = |rows: &[Row]| rows.iter().any(Row::lost);
        Self {
            schema: "weir.bench-churn/v1",
            connections: options.connections,
            flows: options.flows,
            ok: !lost(&weir_rows) && control.as_deref().is_none_or(lost),
            weir: weir_rows,
            control,
            events: weir.to_vec(),
        }
    }
}

impl Row {
    fn lost(&self) -> bool {
        self.broken_connections + self.broken_flows + self.unborn > 0
    }
}

/// By kind, in the order in which the kinds first came.
fn rows(records: &[Record]) -> Vec<Row> {
    let mut kinds: Vec<Kind> = Vec::new();
    for record in records {
        if !kinds.contains(&record.kind) {
            kinds.push(record.kind);
        }
    }
    kinds.into_iter().map(|kind| row(kind, records)).collect()
}

fn row(kind: Kind, records: &[Record]) -> Row {
    let mut row = Row { kind: kind.name(), ..Row::default() };
    for record in records.iter().filter(|record| record.kind == kind) {
        row.events += 1;
        row.connections += record.connections;
        row.flows += record.flows;
        row.broken_connections += record.broken_connections;
        row.broken_flows += record.broken_flows;
        row.born += record.born;
        row.unborn += record.unborn.values().sum::<usize>();
        row.longest_ms = row.longest_ms.max(record.longest_ms);
        row.resent += record.resent;
        for (failure, count) in record.failures.iter().chain(&record.unborn) {
            *row.failures.entry(failure.clone()).or_default() += count;
        }
    }
    row
}

/// One event, for whoever watches a run.
pub fn line(record: &Record) -> String {
    let failures =
        if record.failures.is_empty() { String::new() } else { format!(" {:?}", record.failures) };
    let unborn =
        if record.unborn.is_empty() { String::new() } else { format!(" {:?}", record.unborn) };
    format!(
        "{}: broken {} of {} connections, {} of {} flows{failures}; {} opened meanwhile{unborn}; longest answer {} ms, {} \
         datagrams sent again; {:.1} s",
        record.kind.name(),
        record.broken_connections,
        record.connections,
        record.broken_flows,
        record.flows,
        record.born,
        record.longest_ms,
        record.resent,
        record.took_ms as f64 / 1e3
    )
}

/// Prints the table for people.
pub fn print(report: &Report) {
    println!(
        "{} connections, {} flows by UDP, half of each by IPv6; broken of all that went on:\n",
        report.connections, report.flows
    );
    println!(
        "{:<18}{:>7}  {:>26}{:>22}{:>9}{:>7}",
        "event", "events", "connections", "flows", "unborn", "ms"
    );
    report.weir.iter().for_each(print_row);
    if let Some(control) = &report.control {
        println!("\nMaglev with a table of flows in each forwarder:\n");
        control.iter().for_each(print_row);
    }
    println!(
        "\nunborn: openings that failed, of 1 for each 20 conversations. ms: the longest answer by TCP."
    );
    let mut failures = BTreeMap::<_, usize>::new();
    for (failure, count) in report.weir.iter().flat_map(|row| &row.failures) {
        *failures.entry(failure).or_default() += count;
    }
    failures.iter().for_each(|(failure, count)| println!("weir: {failure}: {count}"));
    println!("{}", if report.ok { "met" } else { "MISSED" });
}

fn print_row(row: &Row) {
    let share = |broken: usize, of: usize| {
        let percent = 100.0 * broken as f64 / of.max(1) as f64;
        if broken == 0 {
            format!("0 of {of}")
        } else {
            format!("{broken} of {of} ({percent:.2} %)")
        }
    };
    println!(
        "{:<18}{:>7}  {:>26}{:>22}{:>9}{:>7}",
        row.kind,
        row.events,
        share(row.broken_connections, row.connections),
        share(row.broken_flows, row.flows),
        row.unborn,
        row.longest_ms
    );
}
