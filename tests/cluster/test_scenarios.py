import ast
from pathlib import Path

import pytest

from testing.cluster.paths import REPOSITORY
from testing.scenarios import SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_its_tests_exist(scenario: str) -> None:
    for test in SCENARIOS[scenario]:
        file, _, name = test.partition("::")
        tree = ast.parse(Path(REPOSITORY, file).read_text())
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert name in functions
