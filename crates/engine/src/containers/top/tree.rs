//! The order and the branches of a tree of processes (`ps f`, `ps -H`).

use std::collections::HashMap;

use super::process::Process;

/// How a process is shown below its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// By lines: ` \_ `.
    Lines,
    /// By two spaces for each level.
    Indented,
}

/// The greatest number of levels that are shown. A container may have as many as it may have processes.
const LEVELS: usize = 64;

/// Puts each process after its parent, and sets its branch. Siblings keep their order.
pub(super) fn arrange(processes: Vec<Process<'_>>, style: Style) -> Vec<Process<'_>> {
    let links: Vec<(i32, i64)> = processes
        .iter()
        .map(|process| (process.pid, process.stat(4)))
        .collect();
    let mut processes: Vec<Option<Process<'_>>> = processes.into_iter().map(Some).collect();
    let placed = order(&links, style)
        .into_iter()
        .filter_map(|(index, branch)| {
            let mut process = processes[index].take()?;
            process.branch = branch;
            Some(process)
        });
    placed.collect()
}

/// Returns the indices of processes, given as their pid and that of their parent, in the order of the tree, with
/// their branches.
fn order(links: &[(i32, i64)], style: Style) -> Vec<(usize, String)> {
    let indices: HashMap<i64, usize> = links
        .iter()
        .enumerate()
        .map(|(index, (pid, _))| (i64::from(*pid), index))
        .collect();
    let mut children: HashMap<Option<usize>, Vec<usize>> = HashMap::new();
    for (index, (_, parent)) in links.iter().enumerate() {
        let parent = indices.get(parent).copied().filter(|one| *one != index);
        children.entry(parent).or_default().push(index);
    }
    let roots = children.remove(&None).unwrap_or_default();
    let mut placed = Vec::with_capacity(links.len());
    // Each with the branch of its children's level; reversed, as the last is next.
    let mut waiting: Vec<(usize, usize, String, bool)> = roots
        .into_iter()
        .rev()
        .map(|root| (root, 0, String::new(), true))
        .collect();
    while let Some((index, level, above, is_last)) = waiting.pop() {
        placed.push((index, branch(level, &above, style)));
        let below = match level {
            0 => String::new(),
            LEVELS.. => above,
            _ => format!("{above}{}", if is_last { "    " } else { "|   " }),
        };
        let own = children.remove(&Some(index)).unwrap_or_default();
        let last = own.last().copied();
        waiting.extend(
            own.into_iter()
                .rev()
                .map(|child| (child, level + 1, below.clone(), Some(child) == last)),
        );
    }
    placed
}

fn branch(level: usize, above: &str, style: Style) -> String {
    match (level, style) {
        (0, _) => String::new(),
        (_, Style::Lines) => format!(" {above}\\_ "),
        (_, Style::Indented) => "  ".repeat(level.min(LEVELS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_follow_their_parent() {
        let links = [(5, 0), (6, 5), (7, 6), (8, 5), (9, 8), (10, 1)];
        let lines: Vec<String> = order(&links, Style::Lines)
            .into_iter()
            .map(|(index, branch)| format!("{branch}{}", links[index].0))
            .collect();
        assert_eq!(
            lines,
            ["5", " \\_ 6", " |   \\_ 7", " \\_ 8", "     \\_ 9", "10"]
        );
        let indented = order(&links, Style::Indented);
        assert_eq!(indented[2], (2, "    ".to_owned()));
        // A long chain of parents, and processes that are their own.
        let chain: Vec<(i32, i64)> = (1..=20_000).map(|pid| (pid, i64::from(pid) - 1)).collect();
        let placed = order(&chain, Style::Lines);
        assert_eq!(placed.len(), chain.len());
        assert!(placed.iter().all(|(_, branch)| branch.len() < 300));
        assert_eq!(order(&[(3, 3)], Style::Lines), [(0, String::new())]);
    }
}
