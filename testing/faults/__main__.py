"""Plans of faults, from the command line.

    python -m testing.faults --minutes 60        new plans for an hour (`make soak`)
    python -m testing.faults --seed 17           that plan again
    python -m testing.faults --seed 17 --steps 0,3,9
                                               of that plan, these steps alone
    python -m testing.faults --seed 17 --shrink  look for the fewest steps of it that fail

Each also with `--broker nats` (or redis, or kafka): the signals come from this broker, which may fail as well.

The first plan that fails ends it, with status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time

from testing.local.brokers import BROKERS
from testing.local.postgres import LocalPostgres

from .run import PLAN_LENGTH, Outcome, run_plan, shrink
from .steps import random_plan


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m testing.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--minutes", type=float, help="run new plans for so long")
    choice.add_argument("--seed", type=int, help="run this plan")
    parser.add_argument("--steps", help="with --seed: the numbers of the steps to take, such as 0,3,9")
    parser.add_argument("--shrink", action="store_true", help="with --seed: look for the fewest steps that fail")
    parser.add_argument("--broker", choices=BROKERS, help="where signals come from, in place of LISTEN")
    arguments = parser.parse_args()
    if arguments.seed is None and (arguments.steps is not None or arguments.shrink):
        parser.error("--steps and --shrink go with --seed")
    return arguments


async def _try(server: LocalPostgres, seed: int, kept: list[int], broker: str | None) -> Outcome | Exception:
    plan = random_plan(seed, PLAN_LENGTH, broker=broker is not None)
    try:
        async with BROKERS[broker]() if broker is not None else contextlib.nullcontext() as started:
            return await run_plan(server, [plan[index] for index in kept], started)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is what was looked for)
        return error


def _report(seed: int, kept: list[int], broker: str | None, error: Exception) -> None:
    plan = random_plan(seed, PLAN_LENGTH, broker=broker is not None)
    print("\nFAILED:", f"{type(error).__name__}: {error}", "\nwith:", sep="\n")
    for index in kept:
        print(f"  {index:2} {plan[index]}")
    over = f" --broker {broker}" if broker is not None else ""
    print(f"\nagain: python -m testing.faults --seed {seed}{over} --steps {','.join(map(str, kept))}", flush=True)


async def _repeat(seed: int, kept: list[int], broker: str | None, *, shrinking: bool) -> int:
    with LocalPostgres() as server:
        outcome = await _try(server, seed, kept, broker)
        if isinstance(outcome, Outcome):
            print(f"kept: {outcome}")
            return 0
        _report(seed, kept, broker, outcome)
        if shrinking:
            last = outcome

            async def fails(part: list[int]) -> bool:
                nonlocal last
                result = await _try(server, seed, part, broker)
                if isinstance(result, Exception):
                    last = result
                print(f"  {len(part)} steps: {'fails' if isinstance(result, Exception) else 'kept'}", flush=True)
                return isinstance(result, Exception)

            _report(seed, await shrink(kept, fails), broker, last)
    return 1


async def _soak(minutes: float, broker: str | None) -> int:
    end = time.monotonic() + minutes * 60
    plans = committed = delivered = resets = connections = 0
    with LocalPostgres() as server:
        while time.monotonic() < end:
            seed = random.randrange(1_000, 1_000_000_000)  # noqa: S311 (no secret)
            kept = list(range(PLAN_LENGTH))
            outcome = await _try(server, seed, kept, broker)
            if isinstance(outcome, Exception):
                _report(seed, kept, broker, outcome)
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
    print(f"all {plans} plans kept: every client had every event once, in order, or got a reset")
    return 0


def main() -> int:
    arguments = _arguments()
    if arguments.minutes is not None:
        return asyncio.run(_soak(arguments.minutes, arguments.broker))
    kept = list(range(PLAN_LENGTH))
    if arguments.steps is not None:
        kept = [int(index) for index in arguments.steps.split(",") if index]
    return asyncio.run(_repeat(arguments.seed, kept, arguments.broker, shrinking=arguments.shrink))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell has it; by now all is ended and removed
