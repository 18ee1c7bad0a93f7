"""Hugging Face's Trainer: AdamW with ZNorm, its norms before and after in the log."""

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import znorm
from znorm.integrations.transformers import adamw


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, rows, labels):
        found = self.net(rows)
        return {"loss": nn.functional.cross_entropy(found, labels), "logits": found}


torch.manual_seed(0)
rows = torch.randn(256, 16)
data = [{"rows": row, "labels": (row[0] > 0).long()} for row in rows]

arguments = TrainingArguments(
    "runs/hf_trainer",
    disable_tqdm=True,
    logging_steps=20,
    max_grad_norm=0,  # it would come before ZNorm, and be void
    num_train_epochs=5,
    per_device_train_batch_size=32,
    report_to=[],
    save_strategy="no",
    use_cpu=True,
    weight_decay=0.01,
)
trainer = Trainer(
    Classifier(),
    arguments,
    train_dataset=data,
    optimizer_cls_and_kwargs=adamw(znorm.ZNorm(), lr=1e-3),
)
trainer.train()
for line in trainer.state.log_history[:-1]:
    print(line["step"], line["loss"], line["znorm/norm_before"], line["znorm/norm_after"])
