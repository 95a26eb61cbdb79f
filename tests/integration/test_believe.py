"""The code of docs/believe.md runs, with fewer epochs, samples and simulations."""

import re

from tests.support.programs import ROOT, run

SHORT = {
    r"epochs=\d+": "epochs=1",
    r"test\[:60\]": "test[:8]",
    r"num_samples=1000": "num_samples=200",
    r"num_simulations=\d+": "num_simulations=8",
    r"\[200\]": "[32]",
}


def test_the_page_runs_from_elbo_to_certificate(tmp_path):
    page = (ROOT / "docs" / "believe.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    for setting, short in SHORT.items():
        code, found = re.subn(setting, short, code)
        assert found, setting
    checks = (
        "\nassert 0 <= float(p_value.min()) <= float(p_value.max()) <= 1"
        "\nassert set(status) <= {'trusted', 'cured', 'uncured', 'improbable'}"
        "\nassert np.isfinite(bounds.lower).all()"
    )
    done = run(["-c", code + checks], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "May I quote log p(x)?" in done.stdout
    assert "of the 90% regions contain the truth" in done.stdout
    assert (tmp_path / "refined" / "posterior.json").is_file()
