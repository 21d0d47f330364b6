"""A script for where CrypTen is installed: bytes of its products between two processes, as JSON."""

import json
import sys
import types

CONVERTERS = ("from_onnx", "from_pytorch", "from_tensorflow", "TF_AND_TF2ONNX")


def load():
    """CrypTen without its ONNX converter, which does not import with recent versions of torch."""
    stub = types.ModuleType("crypten.nn.onnx_converter")
    for name in CONVERTERS:
        setattr(stub, name, None)
    sys.modules["crypten.nn.onnx_converter"] = stub
    import crypten

    return crypten


def main():
    crypten = load()
    import torch
    from crypten import communicator
    from crypten.config import cfg
    from crypten.mpc import run_multiprocess

    @run_multiprocess(world_size=2)
    def count():
        cfg.communicator.verbose = True
        found = []
        for shapes, product in ((((7,), (7,)), torch.mul), (((3, 5), (5, 4)), torch.matmul)):
            x, y = (crypten.cryptensor(torch.ones(shape)) for shape in shapes)
            communicator.get().reset_communication_stats()
            x.mul(y) if product is torch.mul else x.matmul(y)
            found.append(communicator.get().get_communication_stats()["bytes"])
        return found

    # Each party counts what it sends and what it receives: one of them saw the whole wire.
    print(json.dumps(count()[0]))


if __name__ == "__main__":
    main()
