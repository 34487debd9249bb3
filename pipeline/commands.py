"""What all commands share: how they end at an error or a signal, and the old spellings of their options."""

from __future__ import annotations

import click

from pipeline.ending import end_if_stopped, keeps
from pipeline.errors import RunError, UserError, brief
from pipeline.remote import describe_io_error


def renamed(**names: str) -> dict[str, object]:
    """Context settings of a command that still takes the old spellings of options, which help does not show."""
    old = {name.replace("_", "-"): new.replace("_", "-") for name, new in names.items()}
    return {"token_normalize_func": lambda token: old.get(token, token)}


class Command(click.Command):
    """A command whose epilog, the last line of its help, is also what it says where a signal ends it."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        if self.epilog:
            keeps(self.epilog)
        return super().invoke(ctx)


class Commands(click.Group):
    """A click group whose commands end with one line and status 2 for a user's mistake, 1 for another failure."""

    command_class = Command
    group_class = type  # groups in it are of this class too

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; turns the package's errors into click's."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise _Mistake(brief(str(error))) from error
        except RunError as error:
            raise click.ClickException(brief(str(error))) from error
        except click.ClickException as error:
            vars(error)["message"] = brief(error.message)  # it shows the value that was given
            raise
        except Exception as error:
            # A disk, a network or an object store failed in the middle of the work. Click handles a closed pipe itself.
            if isinstance(error, BrokenPipeError) or (reason := describe_io_error(error)) is None:
                raise
            raise click.ClickException(
                f"reading or writing failed ({brief(reason)}): fix it and run the command again"
            ) from error
        finally:
            end_if_stopped()


class _Mistake(click.ClickException):
    exit_code = 2
