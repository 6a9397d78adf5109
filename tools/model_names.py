"""The networks of docs/models.md."""

TIMM = (
    # Convolutional, most with BatchNorm
    "convmixer_768_32",
    "convnext_atto",
    "cs3darknet_s",
    "densenet121",
    "dla46_c",
    "dm_nfnet_f0",
    "dpn48b",
    "efficientnet_b0",
    "ese_vovnet19b_slim_dw",
    "fasternet_t0",
    "fbnetv3_b",
    "gernet_s",
    "ghostnet_050",
    "hardcorenas_a",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_v4",
    "lcnet_035",
    "legacy_seresnet18",
    "mambaout_femto",
    "mnasnet_small",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mobileone_s0",
    "regnetx_002",
    "regnety_002",
    "repghostnet_050",
    "repvgg_a0",
    "repvit_m0_9",
    "res2net50_48w_2s",
    "resnest14d",
    "resnet10t",
    "resnetv2_18",
    "resnetv2_50x1_bit",
    "rexnetr_100",
    "selecsls42b",
    "skresnet18",
    "starnet_s050",
    "tf_efficientnet_lite0",
    "tf_mobilenetv3_small_minimal_100",
    "tresnet_m",
    "vgg11_bn",
    "xception41",
    # With attention or token mixing
    "botnet26t_256",
    "coat_lite_tiny",
    "deit_tiny_patch16_224",
    "edgenext_xx_small",
    "efficientformer_l1",
    "levit_128s",
    "mixer_s32_224",
    "mobilevit_xxs",
    "pit_ti_224",
    "poolformer_s12",
    "swin_tiny_patch4_window7_224",
    "visformer_tiny",
    "vit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
)
"""One small network of each family, as timm names them."""


def every_name() -> list[str]:
    """All classifiers of torchvision, then those of timm, as ``load_teacher`` takes them."""
    from synq_fast.models.zoo import torchvision_names

    return [f"torchvision/{n}" for n in torchvision_names()] + [f"timm/{name}" for name in TIMM]
