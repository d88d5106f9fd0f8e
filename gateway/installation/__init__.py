"""The first hour: a few answers become a commented configuration and an identity (``dicom-mail init``)."""

from gateway.installation.answers import QUESTIONS, Answers, Door, Proof, Question, parse
from gateway.installation.files import Installation, install

__all__ = ("QUESTIONS", "Answers", "Door", "Installation", "Proof", "Question", "install", "parse")
