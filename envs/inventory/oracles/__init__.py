"""Exact optima and rigorous lower bounds for the inventory settings, to measure learned policies against.

Timing is that of the simulator. In period t a location orders, then demand d_t is met from the stock on hand,
then holding and underage costs are charged on what is left, and an order of period t with lead time L is
usable for the demand of period t + L. Costs are long-run averages per period; stock and demand are in units.

| system                              | oracle                                                              |
|-------------------------------------|---------------------------------------------------------------------|
| one store, backlogged               | `newsvendor_base_stock`                                             |
| one store, lost demand              | `solve_lost_sales`, `best_base_stock`, `best_capped_base_stock`     |
| serial chain, backlogged            | `clark_scarf`                                                       |
| one transshipment warehouse         | `transshipment_lower_bound`                                         |
| one or many warehouses, lost demand | `lost_sales_relaxation_bound`                                       |
"""

from decisionrl.envs.inventory.oracles.backlogged import (
    BaseStock,
    EchelonBaseStock,
    clark_scarf,
    newsvendor_base_stock,
)
from decisionrl.envs.inventory.oracles.bounds import (
    TransshipmentBound,
    lost_sales_relaxation_bound,
    transshipment_lower_bound,
)
from decisionrl.envs.inventory.oracles.demand import clipped_normal_pmf, convolve_pmf, poisson_pmf
from decisionrl.envs.inventory.oracles.lost_sales import (
    CappedBaseStock,
    LostSalesOracle,
    best_base_stock,
    best_capped_base_stock,
    capped_base_stock_cost,
    solve_lost_sales,
)

__all__ = [
    "BaseStock",
    "CappedBaseStock",
    "EchelonBaseStock",
    "LostSalesOracle",
    "TransshipmentBound",
    "best_base_stock",
    "best_capped_base_stock",
    "capped_base_stock_cost",
    "clark_scarf",
    "clipped_normal_pmf",
    "convolve_pmf",
    "lost_sales_relaxation_bound",
    "newsvendor_base_stock",
    "poisson_pmf",
    "solve_lost_sales",
    "transshipment_lower_bound",
]
