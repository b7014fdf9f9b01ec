"""The examples run as they are, learn, and use nothing but public names."""

import ast
import importlib.util
from pathlib import Path

import saol_lib

EXAMPLE = Path(__file__).parents[1] / "examples/own_network.py"


def test_own_network_learns_with_both_layers(capsys):
    spec = importlib.util.spec_from_file_location("own_network", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    accuracy = module.main(epochs=2)
    assert set(accuracy) == {"SAOL", "GAP-FC"}
    assert min(accuracy.values()) > 0.5, "five times what chance gives"
    assert "first map" in capsys.readouterr().out


def test_own_network_is_short_and_takes_public_names_alone():
    tree = ast.parse(EXAMPLE.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    ours = [node for node in imports if "saol_lib" in ast.unparse(node)]
    names = {name.name for node in ours for name in node.names}
    assert [node.module for node in ours] == ["saol_lib"]
    assert {"attach_saol", "mix", "total_loss", "score_maps"} == names <= set(saol_lib.__all__)

    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    code = [line for line in EXAMPLE.read_text().splitlines()[main.lineno :] if line.strip()]
    assert len(code) <= 40
