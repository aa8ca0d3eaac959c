r"""Serve a bundle and its gallery over HTTP; needs neither torch nor a GPU.

python serve_onnx/server.py --bundle bundles/quickstart --gallery galleries/wardrobe
python serve_onnx/server.py --bundle bundles/shop --gallery galleries/shop --host 0.0.0.0 \
    --key-file keys.txt --device cuda

Installed from a wheel, the command is called adde-server.
"""

from adde.serving.programs.server import main

if __name__ == "__main__":
    main()
