"""Loads orders into an SQLite database, queries it, updates rows and vacuums.

arguments: ROWS COMMIT_EVERY
variants: 400000 2000 | 9000 5
"""

import random
import sqlite3
import sys

rows, every = int(sys.argv[1]), int(sys.argv[2])
draw = random.Random(1)
database = sqlite3.connect("orders.db")
database.execute("create table orders (id integer primary key, customer int, amount real)")
for number in range(rows):
    database.execute(
        "insert into orders values (?, ?, ?)", (number, draw.randrange(500), draw.random() * 100)
    )
    if number % every == 0:
        database.commit()
database.execute("create index by_customer on orders (customer)")
for customer in range(500):
    database.execute("select sum(amount) from orders where customer = ?", (customer,)).fetchone()
database.execute("update orders set amount = amount * 1.1 where id % 3 = 0")
database.commit()
database.execute("vacuum")
