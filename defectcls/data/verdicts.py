"""What people say of photos, as rows of a database: no row is ever changed, who takes a verdict back adds one."""

from pathlib import Path

import sqlalchemy as sql

from defectcls.errors import UserError

UNSURE = ""  # the label of who cannot say
NUMBER = sql.BigInteger().with_variant(sql.Integer, "sqlite")  # whose own numbers are called so
TABLES = sql.MetaData()
VERDICTS = sql.Table(
    "verdicts",
    TABLES,
    sql.Column("id", NUMBER, primary_key=True),
    *(sql.Column(name, sql.Text, nullable=False) for name in ("time", "who", "name", "label", "model_digest")),
    sql.Column("photo", sql.Text, nullable=False, index=True),
    sql.Column("reason", sql.Text, nullable=False),  # why it was asked for, as of its decision
    sql.Column("chance", sql.Double),  # with which it was drawn into an audit; NULL of what was not
    sql.Column("seconds", sql.Double),  # that the person took
    sql.Column("undoes", NUMBER, index=True),  # the id of the row that this one takes back
    sqlite_autoincrement=True,
)
UNDOING = VERDICTS.alias()
STANDS = VERDICTS.c.undoes.is_(None) & ~sql.exists().where(UNDOING.c.undoes == VERDICTS.c.id)  # and is not undone
LAST = sql.select(sql.func.max(VERDICTS.c.id)).where(STANDS).group_by(VERDICTS.c.photo, VERDICTS.c.who)
STANDING = sql.select(VERDICTS).where(VERDICTS.c.id.in_(LAST)).order_by(VERDICTS.c.id)  # one of each photo and person


def address_of(given: str | Path, there: bool = False) -> sql.URL:
    """Of a database: an address of SQLAlchemy, such as postgresql://user@host/name, or the file of an SQLite one.

    Args:
        there: whether a file has to be there already.

    Raises:
        UserError: it is no address, or not there.
    """
    try:
        file = Path(given).expanduser()
        url = sql.make_url(str(given)) if "://" in str(given) else sql.URL.create("sqlite", database=str(file))
    except sql.exc.ArgumentError as error:  # whose address may hold a password
        raise UserError("no address of a database: give one such as postgresql://user@host/name") from error
    if there and url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise UserError(f"{given} is not there: give a database of serve or review, such as serving/decisions.sqlite")
    return url
