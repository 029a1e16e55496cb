"""Plans of faults, from the command line.

    python -m tests.faults --minutes 60        new plans for an hour (`make soak`)
    python -m tests.faults --seed 17           that plan again
    python -m tests.faults --seed 17 --steps 0,3,9
                                               of that plan, these steps alone
    python -m tests.faults --seed 17 --shrink  look for the fewest steps of it that fail

The first plan that fails ends it, with status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time

from e2e.local.postgres import LocalPostgres

from .run import PLAN_LENGTH, Outcome, run_plan, shrink
from .steps import random_plan


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--minutes", type=float, help="run new plans for so long")
    choice.add_argument("--seed", type=int, help="run this plan")
    parser.add_argument("--steps", help="with --seed: the numbers of the steps to take, such as 0,3,9")
    parser.add_argument("--shrink", action="store_true", help="with --seed: look for the fewest steps that fail")
    arguments = parser.parse_args()
    if arguments.seed is None and (arguments.steps is not None or arguments.shrink):
        parser.error("--steps and --shrink go with --seed")
    return arguments


async def _try(server: LocalPostgres, seed: int, kept: list[int]) -> Outcome | Exception:
    plan = random_plan(seed, PLAN_LENGTH)
    try:
        return await run_plan(server, [plan[index] for index in kept])
    except Exception as error:  # noqa: BLE001 (whatever it is, it is what was looked for)
        return error


def _report(seed: int, kept: list[int], error: Exception) -> None:
    plan = random_plan(seed, PLAN_LENGTH)
    print("\nFAILED:", f"{type(error).__name__}: {error}", "\nwith:", sep="\n")
    for index in kept:
        print(f"  {index:2} {plan[index]}")
    print(f"\nagain: python -m tests.faults --seed {seed} --steps {','.join(map(str, kept))}", flush=True)


async def _repeat(seed: int, kept: list[int], *, shrinking: bool) -> int:
    with LocalPostgres() as server:
        outcome = await _try(server, seed, kept)
        if isinstance(outcome, Outcome):
            print(f"kept: {outcome}")
            return 0
        _report(seed, kept, outcome)
        if shrinking:
            last = outcome

            async def fails(part: list[int]) -> bool:
                nonlocal last
                result = await _try(server, seed, part)
                if isinstance(result, Exception):
                    last = result
                print(f"  {len(part)} steps: {'fails' if isinstance(result, Exception) else 'kept'}", flush=True)
                return isinstance(result, Exception)

            _report(seed, await shrink(kept, fails), last)
    return 1


async def _soak(minutes: float) -> int:
    end = time.monotonic() + minutes * 60
    plans = committed = delivered = resets = connections = 0
    with LocalPostgres() as server:
        while time.monotonic() < end:
            seed = random.randrange(1_000, 1_000_000_000)  # noqa: S311 (no secret)
            kept = list(range(PLAN_LENGTH))
            outcome = await _try(server, seed, kept)
            if isinstance(outcome, Exception):
                _report(seed, kept, outcome)
                print("smaller: the same with --shrink instead of --steps ...")
                return 1
            plans += 1
            committed += outcome.committed
            delivered += outcome.delivered
            connections += outcome.connections
            resets += sum(outcome.resets.values())
            left = max(0.0, end - time.monotonic()) / 60
            print(
                f"seed {seed} kept; {plans} plans: {committed} events, {delivered} delivered over {connections} "
                f"connections, {resets} resets; {left:.1f} min left",
                flush=True,
            )
    print(f"all {plans} plans kept: every client had every event once, in order, or was told of the gap")
    return 0


def main() -> int:
    arguments = _arguments()
    if arguments.minutes is not None:
        return asyncio.run(_soak(arguments.minutes))
    kept = list(range(PLAN_LENGTH))
    if arguments.steps is not None:
        kept = [int(index) for index in arguments.steps.split(",") if index]
    return asyncio.run(_repeat(arguments.seed, kept, shrinking=arguments.shrink))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell has it; by now all is ended and removed
