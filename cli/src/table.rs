//! Columns without borders, as kubectl prints them.

/// Prints `rows` under `header`, each column as wide as its widest cell.
pub fn print(header: &[&str], rows: Vec<Vec<String>>) {
    let header = header.iter().map(ToString::to_string).collect();
    let table: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    for line in render(&table) {
        println!("{line}");
    }
}

fn render(table: &[Vec<String>]) -> Vec<String> {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        table.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    table.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let lines = render(&[row(["NAME", "PHASE"]), row(["triage-7kq2d", "Running"]), row(["x", ""])]);
        assert_eq!(lines, ["NAME           PHASE", "triage-7kq2d   Running", "x"]);
    }
}
