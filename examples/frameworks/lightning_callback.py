"""Lightning: a callback attaches ZNorm, and its receipt goes to the logger."""

import lightning
import torch
from torch import nn

import znorm
from znorm.integrations.lightning import GradientTransform


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_step(self, batch, number):
        rows, labels = batch
        return nn.functional.cross_entropy(self.net(rows), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


torch.manual_seed(0)
rows = torch.randn(256, 16)
labels = (rows[:, 0] > 0).long()
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows, labels), batch_size=32)

callback = GradientTransform(znorm.ZNorm())
trainer = lightning.Trainer(
    accelerator="cpu",
    callbacks=[callback],
    enable_checkpointing=False,
    enable_progress_bar=False,
    logger=False,
    max_epochs=5,
)
trainer.fit(Classifier(), data)
(attachment,) = callback.attachments
for name, values in attachment.receipt().items():
    print(f"{name}: {values['steps']} steps, norm {values['norm_before']:.4f} before, ", end="")
    print(f"{values['norm_after']:.4f} after")
