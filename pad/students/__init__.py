"""Speech encoders as students: one file per family says how it goes from waveforms to frames."""

from pad.students.front_end import FrontEnd, SpeechInputs
from pad.students.layout import FrameLayout
from pad.students.loading import load_student
from pad.students.student import Student

__all__ = ["FrameLayout", "FrontEnd", "SpeechInputs", "Student", "load_student"]
