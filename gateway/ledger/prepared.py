"""Statements that run with every instance of a modality, put together once.

Between its last byte and its answer an instance costs a handful of statements. SQLAlchemy compiles each of them, and
says how values and rows are converted, the first time a kind of database is asked; after that the statement goes to
the driver as it is, in the transaction that is open. All else in the ledger runs the usual way, which takes longer
than the database does and is easier to read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from sqlalchemy import ColumnDefault, Connection, Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import Delete, Insert, Select, Update
from sqlalchemy.sql.compiler import SQLCompiler

Conversion = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Form:
    """A statement as one kind of database wants it.

    Attributes:
        text: For the driver.
        positions: Names of the parameters in their order; None when the driver takes them by name.
        constants: Values that are always the same, as the driver takes them.
        going: How the values of some parameters are converted.
        coming: How the values of some columns are, by place.
    """

    text: str
    positions: tuple[str, ...] | None
    constants: Mapping[str, Any]
    going: tuple[tuple[str, Conversion], ...]
    coming: tuple[tuple[int, Conversion], ...]

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """The values as the driver wants them."""
        converted = {name: convert(values[name]) for name, convert in self.going}
        all_values = {**self.constants, **values, **converted}
        return all_values if self.positions is None else [all_values[name] for name in self.positions]

    def row(self, row: Sequence[Any]) -> Sequence[Any]:
        """A row as the tables mean it."""
        if not self.coming:
            return row
        values = list(row)
        for at, convert in self.coming:
            values[at] = convert(values[at])
        return values


class Prepared:
    """A statement and its forms.

    Args:
        statement: What changes from one run to the next is a parameter.
        columns: Of an insert or update: what its values are called. For the rest an insert takes the tables' defaults.
    """

    def __init__(self, statement: Select[Any] | Insert | Update | Delete, columns: Sequence[str] = ()) -> None:
        self._statement: Final = statement
        self._columns: Final = list(columns) or None
        self._forms: Final[dict[str, _Form]] = {}

    def ask(self, connection: Connection, values: Mapping[str, Any]) -> list[Sequence[Any]]:
        """Run a question, and give all its rows.

        Raises:
            DBAPIError: The database did not answer.
        """
        form = self._form(connection)
        rows = self._execute(connection, form, values).fetchall()
        return [form.row(row) for row in rows] if form.coming else rows

    def run(self, connection: Connection, values: Mapping[str, Any]) -> None:
        """Run a change.

        Raises:
            DBAPIError: The database did not take it.
        """
        self._execute(connection, self._form(connection), values)

    def _execute(self, connection: Connection, form: _Form, values: Mapping[str, Any]) -> Any:
        driver: Any = connection.connection.driver_connection
        parameters = form.parameters(values)
        try:
            return driver.execute(form.text, parameters)
        except Exception as error:
            dialect = connection.dialect
            base = dialect.loaded_dbapi.Error
            raise DBAPIError.instance(form.text, None, error, base, hide_parameters=True, dialect=dialect) from error

    def _form(self, connection: Connection) -> _Form:
        dialect = connection.dialect
        form = self._forms.get(dialect.name)
        if form is None:
            form = self._forms[dialect.name] = self._compile(dialect)
        return form

    def _compile(self, dialect: Dialect) -> _Form:
        compiled = self._statement.compile(dialect=dialect, column_keys=self._columns)
        assert isinstance(compiled, SQLCompiler)
        going = {
            name: convert
            for name, bind in compiled.binds.items()
            if (convert := bind.type.dialect_impl(dialect).bind_processor(dialect)) is not None
        }
        constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        constants |= {column.key: cast("ColumnDefault", column.default).arg for column in compiled.insert_prefetch}
        constants = {name: going.pop(name)(value) if name in going else value for name, value in constants.items()}
        coming: list[tuple[int, Conversion]] = []
        if isinstance(self._statement, Select):
            for at, column in enumerate(self._statement.selected_columns):
                convert = column.type.dialect_impl(dialect).result_processor(dialect, None)
                if convert is not None:
                    coming.append((at, convert))
        positions = tuple(compiled.positiontup or ()) if compiled.positional else None
        return _Form(compiled.string, positions, constants, tuple(going.items()), tuple(coming))
