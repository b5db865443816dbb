"""How soon random cuts set a row of a table apart from others: what an isolation forest knows of it, tree by tree.

A tree cuts a draw of rows at random places of random columns until each is alone (Liu, Ting, Zhou, 2008): few cuts are
enough for what is unusual. No label is needed. The trees are scikit-learn's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttool_series.tabular_columns import Column, as_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

TREES = 100


def depths(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], seed: int) -> NDArray[Any]:
    """`[N, TREES]` float64: cuts that each tree needs for each row, where its draw of rows is left with several plus
    what these would take on average. Rows have values that `columns` were fitted to."""
    import numpy as np
    from sklearn.ensemble import IsolationForest

    values = np.column_stack([_numbers(column, [row.get(column.name) for row in rows]) for column in columns])
    values = values.astype(np.float32)  # as trees compare them
    forest = IsolationForest(n_estimators=TREES, random_state=seed).fit(values)
    found = []
    for tree in forest.estimators_:
        leaf = tree.apply(values)
        left = np.maximum(tree.tree_.n_node_samples[leaf], 1)
        # Cuts to a row among `left`, on average: twice the harmonic number of left - 1, less what is never looked for.
        harmonic = np.array([0.0, *np.cumsum(1 / np.arange(1, left.max() + 1))])[left - 1]
        found.append(tree.tree_.compute_node_depths()[leaf] - 1 + 2 * harmonic - 2 * (left - 1) / left)
    return np.column_stack(found)


def _numbers(column: Column, values: Sequence[Any]) -> NDArray[Any]:
    """`[N]`, so that a cut can be made: numbers from 0 to 1 in their range and -1 where they are missing; of categories
    how rare they are (minus the logarithm of their share)."""
    import numpy as np

    if column.categories:
        places = [column.place(value)[0] for value in values]
        counts = Counter(places)
        return np.array([np.log(len(places) / counts[place]) for place in places])
    low, high = column.edges[0], column.edges[-1]
    known = [as_number(value) for value in values]
    return np.array([-1.0 if number is None else (number - low) / (high - low) for number in known])
