from tools import recipes_page


def test_page_is_that_of_the_recipes_as_they_are():
    message = "run: python tools/recipes_page.py"
    assert recipes_page.PAGE.read_text(encoding="utf-8") == recipes_page.render(), message
