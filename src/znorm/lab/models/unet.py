"""Nets that draw masks: a U-Net on a ResNet-50, UNet++ and Attention U-Net, from MONAI.

All three give logits ``(N, classes, H, W)``; ``classes`` is 1 for a mask of yes and no. Where a
published net is not what MONAI's arguments can ask for, single layers are exchanged here.
Convolutions outside the ResNet start from He's normal distribution with biases of zero, as the
published code of UNet++ and of Attention U-Net has it; MONAI leaves them to torch.
"""

from __future__ import annotations

from torch import Tensor, nn

from znorm.lab.models.libraries import load

__all__ = ["UNetPlusPlus", "attention_unet", "resnet50_unet"]

WIDTHS = (32, 64, 128, 256, 512)


def resnet50_unet(channels: int, classes: int) -> nn.Module:
    """A U-Net whose encoder is ResNet-50, not pretrained.

    Parameters
    ----------
    channels : int
        Of the image.
    classes : int

    Returns
    -------
    nn.Module
        Maps images ``(N, channels, H, W)``, sides multiples of 32, to logits ``(N, classes, H,
        W)``. At 3 channels the encoder has the 23,508,032 parameters of the published ResNet-50
        without its classifier. At 1 class the net has 32,521,105, the count of the usual U-Net on
        it, that of segmentation_models.pytorch.

    Raises
    ------
    ConfigurationError
        If MONAI is missing.
    """
    nets = load("monai.networks.nets", model="resnet50_unet", install="monai")
    net = nets.FlexibleUNet(
        in_channels=channels,
        out_channels=classes,
        backbone="resnet50",
        pretrained=False,
        # MONAI's default puts a 1x1 convolution before each enlargement, and has an eps of 1e-3.
        pre_conv=None,
        norm="batch",
        # Padding repairs sizes that pooling rounds down; the strides of a ResNet round them up.
        is_pad=False,
    )
    _initialize(net.decoder)
    _initialize(net.segmentation_head)
    unet: nn.Module = net
    return unet


class UNetPlusPlus(nn.Module):
    """UNet++ of 32 to 512 channels, without deep supervision.

    Parameters
    ----------
    channels : int
        Of the image.
    classes : int

    Raises
    ------
    ConfigurationError
        If MONAI is missing.

    Notes
    -----
    Maps images ``(N, channels, H, W)``, sides multiples of 16, to logits ``(N, classes, H, W)``.

    Zhou, Siddiquee, Tajbakhsh and Liang, "UNet++: A Nested U-Net Architecture for Medical Image
    Segmentation", DLMIA 2018. Their code has 9,041,601 parameters at 1 channel and 1 class, with a
    bias and a dropout of 0.5 after each convolution, and no normalization. Here batch norm stands
    in for both, as in the nets that it is compared with: 9,041,601 + 3,648.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        nets = load("monai.networks.nets", model="unetplusplus", install="monai")
        blocks = load("monai.networks.nets.basic_unet", model="unetplusplus", install="monai")
        self.net = nets.BasicUNetPlusPlus(
            spatial_dims=2,
            in_channels=channels,
            out_channels=classes,
            features=(*WIDTHS, WIDTHS[0]),
            act="relu",
            norm="batch",
            bias=False,
        )
        top, below = WIDTHS[:2]
        for column in range(1, 5):
            # MONAI does not halve the channels on the way up into the top row: 69,760 parameters
            # more than published.
            block = blocks.UpCat(2, below, top * column, top, "relu", "batch", bias=False)
            setattr(self.net, f"upcat_0_{column}", block)
            if column < 4:
                # The outputs that only deep supervision reads: no gradient would ever reach them.
                setattr(self.net, f"final_conv_0_{column}", nn.Identity())
        for module in self.net.modules():
            if isinstance(module, blocks.UpCat):
                # It pads what needs no padding where sides are multiples of 16: a copy for nothing.
                module.is_pad = False
        _initialize(self.net)

    def forward(self, x: Tensor) -> Tensor:
        # MONAI gives a list, of one mask without deep supervision.
        logits: Tensor = self.net(x)[0]
        return logits


def attention_unet(channels: int, classes: int) -> nn.Module:
    """Attention U-Net of 32 to 512 channels.

    Parameters
    ----------
    channels : int
        Of the image.
    classes : int

    Returns
    -------
    nn.Module
        Maps images ``(N, channels, H, W)``, sides multiples of 16, to logits ``(N, classes, H,
        W)``.

    Raises
    ------
    ConfigurationError
        If MONAI is missing.

    Notes
    -----
    Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas", MIDL 2018. Every skip
    connection goes through an additive attention gate. The published net is three-dimensional and
    has no count to compare with in two. MONAI differs from it, and this with MONAI: gates see the
    level below after it has been enlarged, not before; strided convolutions stand in for max
    pooling, and one convolution, not two, follows each merging.
    """
    nets = load("monai.networks.nets", model="attention_unet", install="monai")
    net = nets.AttentionUnet(
        spatial_dims=2,
        in_channels=channels,
        out_channels=classes,
        channels=WIDTHS,
        strides=(2, 2, 2, 2),
    )
    for module in list(net.modules()):
        if hasattr(module, "merge"):
            # MONAI merges with an instance norm and a PReLU, the published net with batch norm and
            # ReLU as everywhere. An instance norm right before the mask also gives each slice the
            # same mean and spread, whether it has a tumour or not.
            width = module.merge.conv.out_channels
            module.merge.adn = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
    head = net.model[-1].conv
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module is not head:
            # A normalization follows each of these and takes their bias away again. Its gradient is
            # rounding noise, which a transform that scales gradients would blow up.
            module.bias = None
    _initialize(net)
    unet: nn.Module = net
    return unet


def _initialize(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
