"""People as labellers: a store of questions and answers, and the page that shows them."""
