"""vLLM's OpenAI server behind `server_guard.Guard`. `server.Server` starts it.

python -m ralign.engine.judging.server_entry OPTIONS_OF_VLLM < KEY
"""

import os
import runpy
import sys
import tempfile

from ralign.engine.judging import server_guard

_GUARD = f"{server_guard.__name__}.{server_guard.Guard.__name__}"
# With a key of its own vLLM would refuse ours; its development routes are not used.
_UNSET = ("VLLM_API_KEY", "VLLM_SERVER_DEV_MODE")
# The folder of the sockets between the server's processes. In /tmp, vLLM's default, the umask decides who may connect;
# this one is for its owner alone.
_SOCKETS = "VLLM_RPC_BASE_PATH"


def main(options: list[str]) -> None:
    """Run the server until it ends.

    Raises:
        MissingInternal: the installed vLLM's engine has no method to sleep or wake.
    """
    server_guard.key_from_stdin()  # before a process is started that would share standard input
    for name in _UNSET:
        os.environ.pop(name, None)
    for method in server_guard.ENGINE_METHODS:
        method.get()
    # The middleware that is added last is the outermost.
    sys.argv = ["vllm", *options, "--middleware", _GUARD]
    with tempfile.TemporaryDirectory(prefix="ralign-judge-", dir=os.environ.get(_SOCKETS)) as sockets:
        os.environ[_SOCKETS] = sockets
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
