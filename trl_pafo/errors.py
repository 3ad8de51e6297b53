"""The errors that a user can meet, in one place. Each message names what is wrong and what to do about it."""


class TrlPafoError(ValueError):
    """Base class of all errors that trl-pafo raises on purpose."""


class ConfigError(TrlPafoError):
    """An option has a value that cannot be used."""


class DataError(TrlPafoError):
    """A dataset or a file of preference pairs cannot be used as it is."""


class TeacherError(TrlPafoError):
    """A teacher is missing, unneeded, or does not fit the student."""


class RunFolderError(TrlPafoError):
    """An output folder belongs to another run, or holds something else."""


class TrainingError(TrlPafoError):
    """A training that a run does in a process of its own has failed."""


class PortfolioError(TrlPafoError):
    """A portfolio cannot be built, certified, saved or used as asked."""


class StudyError(TrlPafoError):
    """A method or a cell of a study failed, and the others went on."""
